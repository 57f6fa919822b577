"""Parse a number or expression with its currency sign, percent sign, unit or counted noun."""

from __future__ import annotations

import re
from dataclasses import replace

from tracefactory.answers.literals import is_false_base, read_number
from tracefactory.answers.units import CURRENCIES, UNITS, Unit, noun_words, parse_unit
from tracefactory.answers.values import Number, Quantity, Text
from tracefactory.maths.expression import Node, parse_expression
from tracefactory.maths.tokens import UnparsedError
from tracefactory.maths.vocabulary import FUNCTIONS

_PERCENT = re.compile(r"\s*(?:%|(?:percent(?:age)?s?|pct|per cent)(?![a-zA-Z]))\s*(?:points?)?$", re.IGNORECASE)
_ZH_PERCENT = re.compile(r"^百分之\s*")
_PREFIX = re.compile(r"^([-+]?)\s*(?:USD?\s*)?(USD|€|£|¥|₹|Rs\.?|RMB)\s*([-+]?\s*[\d.\\(].*)$")
_ABOUT = re.compile(
    r"^(?:approximately|about|roughly|around|exactly|only|just|约|大约|大概|人民币|\\sim)\s*",
    re.IGNORECASE,
)
_COUNTED_WORDS = re.compile(
    r"((?:one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|[a-z]+teen|[a-z]+ty)"
    r"(?:[- ](?:one|two|three|four|five|six|seven|eight|nine))?)\s+([a-z][a-z ]{2,30})$",
    re.IGNORECASE,
)
_COUNTED_CHINESE = re.compile(r"([一二两三四五六七八九十百千万]+)([个只本页人名条张块支棵辆件次岁天元米位颗].{0,10})$")
_TAIL_START = re.compile(r"(?<=[\d)}\]!°. ])(?=[A-Za-z°¢€£¥₹\u4e00-\u9fff(])")
_TAIL = re.compile(
    r"[A-Za-z°¢€£¥₹\u4e00-\u9fff()/^{}\-' .,]*(?:\^\{?-?\d\}?|[a-z][23])?"
    r"[A-Za-z°\u4e00-\u9fff()/^{}\-' .]*(?:\^?\{?-?\d\}?)?"
)
_ONLY_WORDS = re.compile(r"[A-Za-z]{3,}|[A-Za-z]{2,}(?: [A-Za-z]{2,})+")
_COMMAND = re.compile(r"\\[a-zA-Z]+|(?<![a-zA-Z])(?:sqrt|sin|cos|tan|log|ln|exp|pi)(?![a-zA-Z])")
_WORD_HEAD = re.compile(r"(?<![A-Za-z])[A-Za-z]{2,}(?=\s|$)")
"""A word of prose before the unit, which makes the text a sentence and not a quantity; begun once, in linear time."""
_TRIGONOMETRIC = re.compile(r"sin|cos|tan|cot|sec|csc")
_LONGEST_TAIL = 80
_AMBIGUOUS = frozenset("mgshLlNJWVA")
_PER_TIME = re.compile(
    r"(?:/\s*|\s(?:per|an?|each|every)\s+)(sec(?:ond)?|min(?:ute)?|hr|hour|day|week|month|year)s?$", re.IGNORECASE
)
"""The end of an amount for each unit of time, `$34 a month`, `5 letters a day`."""
_PLAIN_NUMBER = re.compile(r"[-+]?[\d,. ]*\d")
_WORDS = re.compile(r"[A-Za-z]{3,}|[\u4e00-\u9fff]")


def number_quantity(source: str, number: Number) -> Quantity:
    """Return a literal as a quantity."""
    node = Node("num", value=number.value)
    return Quantity(source, node, decimals=number.decimals, digits=number.digits, base=number.base)


def read_quantity(text: str) -> Quantity | Text:
    """Parse a stripped text. Words without a number become `Text`; mathematics outside the grammar has no node."""
    if is_false_base(text) or "%%" in text:
        return Text(text)
    if rate := _PER_TIME.search(text):
        amount = read_quantity(text[: rate.start()].rstrip())
        if isinstance(amount, Quantity) and amount.node is not None:
            money = amount.unit is None or amount.unit.dimension[0][0] in CURRENCIES
            if money:
                return replace(amount, per=parse_unit(rate[1]))
    counted = _counted_words(text)
    if counted is not None:
        return counted
    if _ONLY_WORDS.fullmatch(text) and not _is_function(text):
        return Text(text)
    source = _ABOUT.sub("", text)
    text = _ZH_PERCENT.sub("", _PERCENT.sub("", source))
    percent = text != source
    unit: Unit | None = None
    if match := _PREFIX.match(text):
        unit = UNITS[match[2]]
        text = match[1] + match[3]
    number = read_number(text)
    if number is not None:
        return replace(number_quantity(source, number), percent=percent, unit=unit)
    split = _split_unit(text)
    if split is not None:
        head, tail_unit, nouns = split
        glued = re.search(r"\d[A-Za-z]$", text) is not None
        unit = unit or tail_unit
        as_symbols = _expression(text) if unit is not None or nouns else None
        number = read_number(head)
        quantity = Quantity(source, _expression(head)) if number is None else number_quantity(source, number)
        return replace(quantity, percent=percent, unit=unit, nouns=nouns, as_symbols=as_symbols, glued=glued)
    node = _expression(text)
    if node is None and not percent and _is_words(text):
        return Text(source)
    return Quantity(source, node, percent, unit)


def _counted_words(text: str) -> Quantity | None:
    """Parse a number in words followed by what it counts: `five apples`, `二十四个苹果`."""
    match = _COUNTED_WORDS.match(text) or _COUNTED_CHINESE.match(text)
    number = None if match is None else read_number(match[1])
    if match is None or number is None:
        return None
    unit = parse_unit(match[2])
    nouns = frozenset() if unit else noun_words(match[2])
    return Quantity(text, Node("num", value=number.value), unit=unit, nouns=nouns)


def _split_unit(text: str) -> tuple[str, Unit | None, frozenset[str]] | None:
    """Split off a trailing unit or noun; return None when there is none."""
    for start in _TAIL_START.finditer(text):
        head, tail = text[: start.start()].strip(), text[start.start() :]
        if len(tail) > _LONGEST_TAIL or not _TAIL.fullmatch(tail):
            continue
        glued = not text[start.start() - 1].isspace()
        if (
            not _may_be_unit(head, tail, glued)
            or _WORD_HEAD.search(_COMMAND.sub("", head))
            or (tail.startswith("°") and _TRIGONOMETRIC.search(head))  # `\\sin 30°`: part of the argument
        ):
            continue
        if not (read_number(head) or _expression(head)):
            continue
        unit = parse_unit(tail)
        if unit is not None:
            return head, unit, frozenset()
        if re.fullmatch(r"[A-Za-z]", head):
            continue  # "a rectangle", "n is odd"
        if not _is_function(tail) and _WORDS.search(tail):
            lead = re.match(r"([A-Za-z°/]+)\s", tail)
            leading = parse_unit(lead[1]) if lead and lead[1] not in _AMBIGUOUS else None
            return head, leading, frozenset() if leading else noun_words(tail)
    return None


def _may_be_unit(head: str, tail: str, glued: bool) -> bool:
    """Return whether a letter is a unit and not a variable: only after a plain number and a space, or as m²."""
    letter = re.match(r"([A-Za-z])(?![A-Za-z])", tail)
    if letter is None:
        return True
    if not _PLAIN_NUMBER.fullmatch(head) or letter[1] not in _AMBIGUOUS:
        return False
    return not glued or re.fullmatch(r"[mgshLVWNJA]|m(?:\^\{[23]\}|/s.*)", tail) is not None


def _is_function(tail: str) -> bool:
    return any(word in FUNCTIONS for word in re.findall(r"[a-z]+", tail))


def _is_words(text: str) -> bool:
    return bool(_WORDS.search(re.sub(r"\\(?:(?:begin|end)\{\w+\}|[a-zA-Z]+)", "", text))) or not re.search(
        r"[\d\\]", text
    )


def _expression(text: str) -> Node | None:
    if re.fullmatch(r"[A-Z]{2,}", text):
        return None
    if r"\overline" in text or r"\dot" in text:
        return None
    try:
        return parse_expression(text)
    except UnparsedError:
        return None
