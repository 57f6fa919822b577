"""Parse a normalised answer into a typed value: first its structure (lists, intervals, relations), then the parts."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from fractions import Fraction
from functools import lru_cache

from tracefactory.answers.literals import read_clock, read_day, read_decimal_comma, read_number
from tracefactory.answers.normalize import MAX_CHARS, normalize, strip_markup
from tracefactory.answers.quantities import number_quantity, read_quantity
from tracefactory.answers.units import parse_unit
from tracefactory.answers.values import (
    EMPTY,
    REALS,
    Approximation,
    Interval,
    Matrix,
    Quantity,
    Ratio,
    Reading,
    Region,
    Relation,
    Sequence,
    Text,
    Value,
    as_interval,
    infinite,
    interval_of,
)
from tracefactory.maths.brackets import balanced, split_top
from tracefactory.maths.expression import Node
from tracefactory.maths.vocabulary import ALL_REALS, NOTHING

_RELATIONS = {
    "=": "=",
    "<": "<",
    ">": ">",
    r"\le": "<=",
    r"\ge": ">=",
    r"\ne": "!=",
    r"\in": "in",
    r"\approx": "=",
    "≈": "=",
    r"\equiv": "=",
    "≡": "=",
}
_RELATION = re.compile(r"\\(?:le|ge|ne|in|approx|equiv)(?![a-zA-Z])|[=<>]")
_MATRIX = re.compile(
    r"(?:[\[(|]\s*)?\\begin\{(?:([bpvBV]?)(?:small)?matrix|array)\}\s*(?:\{[lcr|\s]*\})?(.*?)\\end\{(?:[bpvBV]?(?:small)?matrix|array)\}"
    r"(?:\s*[\])|])?$",
    re.DOTALL,
)
_JOINER = re.compile(r"\s*(?:;|,\s*(?:and|or)\b|\band\b|\bor\b|,|和|或者|或|以及|与)\s*", re.IGNORECASE)
_COMMAS = re.compile(r"\s*[,;]\s*")
_POINT = re.compile(r"[ABDEFGHMNOQRSTVWXYZ]'?\s*(\([^()]+,[^()]+\))")
"""A named point such as `A(1, 2)`. C and P are excluded: before brackets they are mostly binomials or probabilities."""
_YES_NO = frozenset(("yes", "no", "true", "false"))
_PART_LABEL = re.compile(r"(?:^|[\s,;])\(?(?:part\s+)?(?:([a-h])|(i{1,3}|iv|v)|([1-6]))\s*[.):]\s*", re.IGNORECASE)
_COMPOUND = re.compile(
    r"(?:,?\s*\band\s+|,\s*|^|\s+|(?<=[\u4e00-\u9fff]))(\d+(?:\.\d+)?)\s*([A-Za-z]+|[\u4e00-\u9fff]+|'(?!')|'')(?=$|[\s,\d])"
)
_REALS_BUT = re.compile(
    r"(?:all\s+)?(?:real\s+(?:numbers|values|x)|reals)(?:\s+x)?\s*,?\s+(?:except(?:\s+for)?|other\s+than|but|excluding|besides)\s+(?:x\s*=\s*)?(.+)",
    re.IGNORECASE,
)
_THOUSANDS = re.compile(r"(?:USD|€|£|¥)\s*\d{1,3}(?:\.\d{3})+|\d{1,3}(?:\.\d{3})+\s*(?:€|£|euros?|EUR|USD)")
_APPROXIMATELY = re.compile(
    r"\s*(?:\\(?:approx|simeq|doteq)(?![a-zA-Z])|≈|≃|,?\s*\b(?:or|which\s+is|i\.e\.,?)\s+(?:about|approximately|roughly|around)\b)\s*",
    re.IGNORECASE,
)
_ABOUT_ASIDE = re.compile(
    r"\s*\(\s*(?:about|approximately|approx\.?|roughly|ca\.?|\\approx|≈|~)\s*([^()\d]*+\d[^()]*+)\)\s*[A-Za-z]{0,10}$",
    re.IGNORECASE,
)
_PROSE = re.compile(r"(?<!\\)\b[A-Za-z]{3,} +[A-Za-z]{2,}")
_BARE_NAME = re.compile(r"\\?[A-Za-z]+(?:_\{?\w+\}?)?(?:\([a-z]\))?|[A-Z]{1,3}")
_LETTER_LABEL = re.compile(
    r"((?:\\(?:theta|alpha|beta|gamma|phi|lambda|mu|sigma|Delta|delta|omega)(?![a-zA-Z])|[A-Za-z]))\s*:\s*(?=\S)"
)
_NAMED_PART = re.compile(
    r"(?!(?:and|or|not|all|about|sin|cos|tan|log|exp|sqrt|frac|base|mod)\b)([A-Za-z]{3,})(?:\s+(?:is|of|value))?\s*[:=]?\s*"
    r"([-+]?(?:\d|\\frac|\\sqrt|\.\d|\\infty|\\pi)\S*)"
)
_SUCH_THAT = re.compile(r"[|:]")


@lru_cache(maxsize=8192)
def read(text: str) -> Reading:
    """Return the readings of an answer as a person or a model wrote it."""
    spelled = strip_markup(normalize(strip_markup(text)))
    if len(spelled) > MAX_CHARS:
        return Reading(spelled)
    values = [read_value(spelled)]
    comma = read_decimal_comma(re.sub(r"^(?:USD|€|£|¥)\s*|\s*(?:USD|€|£|¥)$", "", spelled))
    if comma is not None:
        values.append(number_quantity(spelled, comma))
    thousands = _THOUSANDS.fullmatch(spelled)
    if thousands is not None:  # prices have two decimals
        values.append(read_value(spelled.replace(".", "")))
    return Reading(spelled, tuple(values))


def read_value(text: str, depth: int = 0) -> Value:
    """Parse one value; `depth` limits the nesting, and deeper parts are text."""
    text = text.strip().strip("~").strip()
    if depth > 12 or not text:
        return Text(text)
    if label := _POINT.fullmatch(text):
        text = label[1]
    readers: Iterable[Callable[[str, int], Value | None]] = (
        _special,
        _literal,
        _approximation,
        _labelled,
        _compound,
        _parts,
        _named_parts,
        _outward,
        _region,
        _list,
        _relation,
        _bracketed,
        _matrix,
        _plus_minus,
        _ratio,
    )
    for reader in readers:
        value = reader(text, depth)
        if value is not None:
            return value
    return read_quantity(text)


def _special(text: str, depth: int) -> Value | None:
    squashed = re.sub(r"[\\{}\s$.,]", "", text).casefold()
    if squashed in NOTHING or text in (r"\{\}", r"\{ \}"):
        return EMPTY
    if squashed in ("infinity", "positiveinfinity", "inf"):
        return read_quantity(r"\infty")
    if match := _REALS_BUT.fullmatch(text):
        less = read_value(match[1], depth + 1)
        items = less.items if isinstance(less, Sequence) else (less,)
        return Region((REALS,), items)
    return REALS if squashed in ALL_REALS else None


def _approximation(text: str, depth: int) -> Value | None:
    """Parse an exact value with its approximation: `40\\pi \\approx 125.66`, `1/3 (about 0.333)`."""
    aside = _ABOUT_ASIDE.search(text)
    pieces = [text[: aside.start()], aside[1]] if aside is not None else split_top(text, _APPROXIMATELY)
    pieces = [piece.strip() for piece in pieces]
    if len(pieces) < 2 or not all(pieces) or _BARE_NAME.fullmatch(pieces[0]):
        return None
    exact, decimal = read_value(pieces[0], depth + 1), read_value(pieces[-1], depth + 1)
    if isinstance(exact, Text) or isinstance(decimal, Text) or _PROSE.search(pieces[0]):
        return None
    return Approximation(exact, decimal)


def _labelled(text: str, depth: int) -> Value | None:
    """Parse a value behind a label of one letter, `A: 18`; `a:b` and `x:2x` are ratios."""
    match = _LETTER_LABEL.match(text)
    if match is None or depth > 1:
        return None
    rest = text[match.end() :]
    if re.search(rf"(?<![A-Za-z\\]){re.escape(match[1])}(?![A-Za-z])", rest):
        return None
    if match[1] == "A" and re.fullmatch(r"\s*[a-z]", rest):
        return read_value(rest, depth + 1)
    return None if all(map(_BARE_NAME.fullmatch, rest.replace(" ", "").split(":"))) else read_value(rest, depth + 1)


def _named_parts(text: str, depth: int) -> Value | None:
    """Parse values that are named by words, `max 5, min -3`, in the order of the names."""
    pieces = [piece for piece in split_top(text, _JOINER) if piece.strip()]
    found = [_NAMED_PART.fullmatch(piece.strip()) for piece in pieces]
    if len(found) < 2 or read_day(pieces[0]) is not None:
        return None
    parts = {match[1].casefold()[:3]: match[2] for match in found if match is not None}
    if len(parts) != len(found):
        return None
    names = sorted(parts)
    return Sequence("tuple", tuple(read_value(parts[name], depth + 1) for name in names), f"named:{','.join(names)}")


def _compound(text: str, depth: int) -> Value | None:
    """Parse one quantity in several units, such as `1 hour 30 minutes`, into the first of them."""
    pieces = _COMPOUND.findall(text)
    if len(pieces) < 2 or _COMPOUND.sub("", text).strip():
        return None
    found = [(Fraction(number), parse_unit(unit)) for number, unit in pieces]
    first = found[0][1]
    if first is None:
        return None
    total, factor = Fraction(0), None
    for number, unit in found:
        if unit is None or unit.dimension != first.dimension or (factor is not None and unit.factor >= factor):
            return None
        factor = unit.factor
        total += number * unit.factor / first.factor
    return Quantity(text, Node("num", value=total), unit=first)


def _literal(text: str, depth: int) -> Value | None:
    number = read_number(text)
    if number is not None:
        return number_quantity(text, number)
    return read_clock(text) or read_day(text)


def _parts(text: str, depth: int) -> Value | None:
    """Parse a labelled multi-part answer such as `(a) 5, (b) 7`, with the parts in the order of their labels."""
    labels = list(_PART_LABEL.finditer(text))
    if len(labels) < 2 or labels[0].start() != 0:
        return None
    names = [next(group for group in label.groups() if group).casefold() for label in labels]
    expected = {"a": "abcdefgh", "i": ["i", "ii", "iii", "iv", "v"], "1": "123456"}.get(names[0])
    if expected is None or names != list(expected[: len(names)]):
        return None
    ends = [label.start() for label in labels[1:]] + [len(text)]
    items = [text[label.end() : end].strip(" ,;.") for label, end in zip(labels, ends, strict=True)]
    return Sequence("tuple", tuple(read_value(item, depth + 1) for item in items), "parts")


def _outward(text: str, depth: int) -> Value | None:
    """Parse an interval with outward brackets, `]0, 1[` (ISO 80000-2)."""
    match = re.fullmatch(r"([\[\](])([^\[\]]+)([\[\])])", text)
    if match is None or not (match[1] == "]" or match[3] == "[") or not balanced(match[2]):
        return None
    pieces = _pieces(match[2])
    if len(pieces) != 2:
        return None
    return _tuple_or_interval(match[1], match[3], tuple(read_value(piece, depth + 1) for piece in pieces))


def _region(text: str, depth: int) -> Value | None:
    pieces = split_top(text, re.compile(r"\s*\\setminus(?![a-zA-Z])\s*"))
    if len(pieces) == 2:
        whole, less = read_value(pieces[0], depth + 1), read_value(pieces[1], depth + 1)
        if isinstance(less, Sequence) and isinstance(whole, Interval | Region):
            parts = whole.parts if isinstance(whole, Region) else (whole,)
            return Region(parts, less.items)
    pieces = split_top(text, re.compile(r"\s*\\cup(?![a-zA-Z])\s*|(?<=[)\]])\s*U\s*(?=[(\[])"))
    if len(pieces) < 2:
        return None
    first, *rest = pieces
    read_parts = [
        read_value(re.sub(r"^\s*\w+\s*\\in\s*", "", first), depth + 1),
        *(read_value(piece, depth + 1) for piece in rest),
    ]
    regions = [
        part if isinstance(part, Region) or (isinstance(part, Sequence) and part.kind == "set") else as_interval(part)
        for part in read_parts
    ]
    known = tuple(region for region in regions if region is not None)
    return Region(known) if len(known) == len(regions) else Sequence("set", tuple(read_parts))


def _list(text: str, depth: int) -> Value | None:
    pieces = [piece.strip() for piece in split_top(text, _JOINER)]
    pieces = [piece for piece in pieces if piece]
    if len(pieces) < 2 or pieces[0].casefold() in _YES_NO:
        return None
    if all(re.fullmatch(r"[A-Za-z]{4}[A-Za-z ]*+", piece) for piece in pieces[:1]) and " " in text and depth:
        return None
    if any(re.search(r"[A-Za-z]{3} [A-Za-z]{2,}+ [A-Za-z]{2,}+ [A-Za-z]{2}", piece) for piece in pieces):
        return None  # a sentence with commas
    if (
        len(pieces) == 2
        and re.fullmatch(r"\d+", pieces[0])
        and re.search(r"\band\b", text)
        and re.match(r"\d+/\d+$", pieces[1])
    ):
        return read_quantity(f"{pieces[0]} {pieces[1]}")  # 2 and 1/3
    items = [read_value(piece, depth + 1) for piece in pieces]
    if read_day(text) is not None:
        return None
    relations = [item for item in items if isinstance(item, Relation)]
    if relations and len(relations) == len(items) and re.search(r"\bor\b|或", text):
        return Sequence("set", tuple(items), "or")
    return Sequence("list", tuple(items))


def _relation(text: str, depth: int) -> Value | None:
    if not _RELATION.search(text):
        return None
    signs: list[str] = []
    pieces = split_top(text, _RELATION)
    if len(pieces) < 2:
        return None
    position = 0
    for piece in pieces[:-1]:
        position += len(piece)
        match = _RELATION.match(text, position)
        if match is None:
            return None
        signs.append(_RELATIONS[match[0]])
        position = match.end()
    pieces = [piece.strip() for piece in pieces]
    if not pieces[-1] or any(not piece for piece in pieces[1:]):
        return None
    if not pieces[0]:  # "= 5"
        return read_value(pieces[1], depth + 1) if len(pieces) == 2 else None
    terms = tuple(read_value(piece, depth + 1) for piece in pieces)
    return Relation(terms, tuple(signs), tuple(pieces))


_PAIRS = {"(": ")", "[": "]", "]": "[", r"\{": r"\}", "{": "}", r"\langle": r"\rangle", "<": ">"}


def _bracketed(text: str, depth: int) -> Value | None:
    opening = next((sign for sign in (r"\{", r"\langle", "(", "[", "]", "{") if text.startswith(sign)), None)
    closing = next((sign for sign in (r"\}", r"\rangle", ")", "]", "[", "}") if text.endswith(sign)), None)
    if opening is None or closing is None or len(text) < len(opening) + len(closing):
        return None
    inner = text[len(opening) : len(text) - len(closing)].strip()
    if not balanced(inner):
        return None
    such_that = _SUCH_THAT.search(inner, 1) if (opening, closing) == (r"\{", r"\}") else None
    if such_that and (restriction := inner[such_that.end() :].strip()):
        condition = read_value(restriction, depth + 1)
        return condition if isinstance(condition, Relation | Interval | Region) else None
    if not inner:
        return EMPTY if opening in (r"\{", "{") else None
    pieces = _pieces(inner)
    items = tuple(read_value(piece, depth + 1) for piece in pieces)
    if opening in (r"\{", "{") and closing in (r"\}", "}"):
        if opening == "{" and len(items) == 1:
            return items[0]
        return Sequence("set", items)
    if len(items) == 1:
        return items[0] if _PAIRS[opening] == closing else None
    return _tuple_or_interval(opening, closing, items)


def _pieces(inner: str) -> list[str]:
    """Split the content of brackets. `(1,234)` is a pair, but a group that starts with 0 is part of a number."""
    pieces = split_top(inner, _COMMAS)
    if len(pieces) == 1 and re.fullmatch(r"-?\d{1,3}(?:,\d{3})+", inner) and not re.search(r",0\d\d", inner):
        pieces = inner.split(",")
    if len(pieces) == 1:
        pieces = [piece for piece in split_top(inner, _JOINER) if piece.strip()]
    return [piece.strip() for piece in pieces]


def _tuple_or_interval(opening: str, closing: str, items: tuple[Value, ...]) -> Value | None:
    mixed = _PAIRS[opening] != closing or opening == "]"
    if len(items) == 2 and (mixed or opening == "["):
        interval = interval_of(items, opening == "[", closing == "]")
        if interval is not None and opening in "[](" and closing in "[])":
            return interval
        return Sequence("tuple", items, "[]") if not mixed else None
    if mixed:
        return None
    if len(items) == 2 and any(isinstance(item, Quantity) and infinite(item) for item in items):
        return interval_of(items)
    return Sequence("tuple", items, "()" if opening == "(" else opening)


def _matrix(text: str, depth: int) -> Value | None:
    match = _MATRIX.match(text)
    if match is None:
        return None
    rows = [row for row in re.split(r"\\\\(?:\[[^\]]{0,40}\])?", match[2]) if row.strip()]
    if any(r"\begin" in row for row in rows):
        return None
    kind = match[1] if match[1] in ("v", "V") else "v" if text.startswith("|") else ""
    return Matrix(tuple(tuple(read_value(cell, depth + 1) for cell in row.split("&")) for row in rows), kind)


def _plus_minus(text: str, depth: int) -> Value | None:
    count = len(re.findall(r"\\pm(?![a-z])|\\mp(?![a-z])", text))
    if count == 0 or count > 3 or "+-" in text:
        return None
    upper = re.sub(r"\\pm(?![a-z])", "+", re.sub(r"\\mp(?![a-z])", "-", text))
    lower = re.sub(r"\\pm(?![a-z])", "-", re.sub(r"\\mp(?![a-z])", "+", text))
    upper = re.sub(r"^\s*\+", "", upper)
    return Sequence("list", (read_value(upper, depth + 1), read_value(lower, depth + 1)))


def _ratio(text: str, depth: int) -> Value | None:
    pieces = split_top(text, re.compile(r"\s*:\s*|\s+to\s+(?=\d)"))
    if not 2 <= len(pieces) <= 4 or not all(piece.strip() for piece in pieces):
        return None
    parts = tuple(read_value(piece, depth + 1) for piece in pieces)
    if not all(isinstance(part, Quantity) and part.node is not None for part in parts):
        return None
    return Ratio(parts)
