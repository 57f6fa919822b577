"""Find false equations between numbers in a text, such as "12 - 1 = 13".

Only what is certainly arithmetic counts, so a false equation in a form that is not read is not found:

- Both sides are numbers with at least one operation between them; variables, units, percentages, remainders, clock
  times and `mod` are left alone, and so are the ends of a longer expression ("x + 3 = 5", "half of 6 + 4 = 7").
- A result with decimals, or of a division, may be rounded or cut: it is false when it is off by one unit of its last
  place. "10 / 3 = 3.33" and "7 / 2 = 3" are not false, "10 / 2 = 6" is.
- What the text asks, or says is not so ("3 + 4 = 8?", "is wrong"), is not stated.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from fractions import Fraction
from itertools import pairwise
from typing import NamedTuple

from tracefactory.maths.evaluate import IrrationalError, rational
from tracefactory.maths.expression import parse_expression
from tracefactory.maths.notation import OPERATIONS, THOUSANDS
from tracefactory.maths.tokens import UnparsedError

_LONGEST = 200
"""Characters of one side that is read."""
_REACH = 30
"""Characters before and after an equation that are looked at."""
_REWRITES = (
    *OPERATIONS,
    (re.compile("\u00a0"), " "),
    (re.compile(r"\\[dt]?frac\{(\d{1,20})\}\{(\d{1,20})\}"), r"(\1/\2)"),
    (re.compile(r"\\boxed\{(-?[\d.,]{1,40})\}"), r"\1"),
    (re.compile(r"\\[,;! ]|\\[()\[\]]"), " "),
    (re.compile(r"(?<=\d)\*\*(?=[\d(-])"), "^"),
    (re.compile(r"\*\*"), "\n"),  # bold text
    (re.compile(r"\$(?=-?\d)"), " "),
    (re.compile(r"(?<=\d) ?x (?=\d)"), " * "),
    THOUSANDS,
)
_RUN = re.compile(r"[-(]?[\d(](?:[\d()+*/^= -]|\.(?=\d))*")
_OPEN = "\n=([{|.,;:!?>\"'。，；："
_CLOSE = "\n.,;]}|$\"'。，；"
"""Signs before and after which an expression is complete."""
_LIST_ITEM = re.compile(r"(?:\A|\n) *- +\Z")
_PART_OF_NUMBER = re.compile(r"\d[:,]\Z")
"""Times, ratios and tuples."""
_WORD_BEFORE = re.compile(r"([^\W\d_]+) +\Z")
_BINDING = frozenset(
    {
        *("of", "than", "by", "times", "plus", "minus", "over", "to", "from", "between", "negative"),
        *("square", "squared", "cube", "cubed", "root", "mod", "modulo"),
    }
)
"""Words before a number that join it to what comes before them."""
_GOES_ON = frozenset(
    {
        *("so", "and", "then", "which", "thus", "therefore", "hence", "because", "since", "where", "but", "here"),
        *("now", "we"),
    }
)
"""Words after a number that are no unit of it."""
_WORD_AFTER = re.compile(r"[^\W\d_]+")
_BINARY = re.compile(r"[\d)] ?[-+*/^] ?[-(\d]")
_AMBIGUOUS = re.compile(r"/ ?[\d.]+ ?\*")
"""`a / b*c`, which may mean `a / (b*c)`."""
_PLAIN = re.compile(r"-?\d*(?:\.(\d+))?")


class _Side(NamedTuple):
    """One side of an equation: its text and value; `decimals` of a plain number, None of other expressions."""

    text: str
    value: Fraction
    decimals: int | None


def false_equations(text: str) -> list[str]:
    """Return the equations between numbers in a text that are false, as they stand there but for spaces and signs.

    Args:
        text: any text; it takes time in proportion to its length.

    Example:
        >>> false_equations("7 + 5 = 12. 12 - 1 = 13. So x + 1 = 14, and 10 / 3 = 3.33.")
        ['12 - 1 = 13']
    """
    for pattern, replacement in _REWRITES:
        text = pattern.sub(replacement, text)
    return [f"{left.text} = {right.text}" for left, right in _equations(text) if _differ(left, right)]


def _equations(text: str) -> Iterator[tuple[_Side, _Side]]:
    for match in _RUN.finditer(text):
        if "=" not in match[0]:
            continue
        before, after = text[max(0, match.start() - _REACH) : match.start()], text[match.end() : match.end() + _REACH]
        parts = re.split("=+", match[0])
        sides = [_side(part) for part in parts]
        if not _begins(before):
            sides[0] = None
        if not _ends(after):
            sides[-1] = None
        if sides[0] and sides[1] and _LIST_ITEM.search(before):
            negative = _side(f"-{parts[0]}")  # "- 5 + 3 = -2": the sign of an item, or of its first number
            if negative and not _differ(negative, sides[1]):
                continue
        for left, right in pairwise(sides):
            if left and right and (_BINARY.search(left.text) or _BINARY.search(right.text)):
                yield left, right


def _side(text: str) -> _Side | None:
    """Return one side, None where it is no expression of numbers alone."""
    text = " ".join(text.split())
    if not text or len(text) > _LONGEST or _AMBIGUOUS.search(text):
        return None
    try:
        value = rational(parse_expression(text))
    except (UnparsedError, IrrationalError):
        return None
    plain = _PLAIN.fullmatch(text)
    return _Side(text, value, len(plain[1] or "") if plain else None)


def _begins(before: str) -> bool:
    """Return whether an expression can begin after this text, and is not the end of a longer one."""
    if _PART_OF_NUMBER.search(before):
        return False
    if not before.strip(" ") or before.rstrip(" ")[-1] in _OPEN or _LIST_ITEM.search(before):
        return True
    word = _WORD_BEFORE.search(before)
    return word is not None and len(word[1]) > 1 and word[1].lower() not in _BINDING


def _ends(after: str) -> bool:
    """Return whether the expression before this text is complete, and is stated; spaces belong to the expression."""
    if after.startswith(("...", "…")):
        return False
    if after.startswith(":"):
        return not after[1:2].isdigit()
    if not after or after[0] in _CLOSE:
        return True
    word = _WORD_AFTER.match(after)
    return word is not None and word[0].lower() in _GOES_ON


def _differ(left: _Side, right: _Side) -> bool:
    """Return whether two sides differ by more than rounding explains."""
    off = abs(left.value - right.value)
    inexact = any("/" in side.text or "." in side.text for side in (left, right))
    places = [side.decimals for side in (left, right) if side.decimals is not None]
    return off >= Fraction(1, 10 ** min(places)) if inexact and places else off != 0
