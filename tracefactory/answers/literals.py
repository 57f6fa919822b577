"""Parse numbers, times and dates exactly."""

from __future__ import annotations

import re
from dataclasses import replace
from fractions import Fraction

from tracefactory.answers.values import Clock, Day, Number

_SIGN = r"(?P<sign>[-+]?)\s*"
_NUMBERS = tuple(
    re.compile(_SIGN + pattern + r"$")
    for pattern in (
        r"(?P<whole>\d+)(?:\.(?P<part>\d*))?(?:[eE](?P<exp>[+-]?\d{1,4}))?",
        r"(?P<whole>)\.(?P<part>\d+)(?:[eE](?P<exp>[+-]?\d{1,4}))?",
        r"(?P<whole>\d{1,3}(?:,\d{3})+)(?:\.(?P<part>\d*))?",
        r"(?P<whole>\d{1,3}(?: \d{3})+)(?:[.,](?P<part>\d+))?",
        r"(?P<whole>\d{1,3}(?:'\d{3})+)(?:\.(?P<part>\d*))?",
        r"(?P<whole>\d{1,2}(?:,\d{2})+,\d{3})(?:\.(?P<part>\d*))?",
        r"(?P<whole>\d{1,3}(?:\.\d{3}){2,})(?:,(?P<part>\d+))?",
        r"(?P<whole>\d{1,3}(?:\.\d{3})+),(?P<part>\d+)",
    )
)
_COMMA = re.compile(_SIGN + r"(?P<whole>0|\d+),(?P<part>\d+)$")
_SCIENTIFIC = re.compile(
    r"([-+]?\d+(?:\.\d+)?|\.\d+)\s*(?:\\times|\\cdot|\*|[xX])\s*10\s*\^\s*(?:\{\s*([-+]?\d{1,4})\s*\}|\(\s*([-+]?\d{1,4})\s*\)|([-+]?\d{1,4}))$"
)
_REPEATING = re.compile(
    r"([-+]?)\s*(\d*)\s*\.\s*(\d*)\s*(?:\\(?:overline|bar|dot|overset\{\.\})\s*(?:\{\s*(\d+)\s*\}|(\d))|\((\d+)\))$"
)
_TWO_DOTS = re.compile(r"([-+]?)\s*(\d*)\s*\.\s*(\d*)\s*\\dot\s*\{?(\d)\}?\s*(\d*)\s*\\dot\s*\{?(\d)\}?$")
_ENDLESS = re.compile(r"([-+]?)\s*(\d*)\.(\d{0,60}?)(\d{1,6}?)\4{2,}+(?:\.{2,}|\\dots)$")
_BASE = re.compile(
    r"([-+]?)\s*\(?([0-9][0-9A-Za-z]*)\)?\s*(?:_\s*\{?\s*(?:base\s*)?\(?(\d{1,2}|[a-z]{3,9})\)?\s*\}?|\s\(?(?:in\s)?base\s(\d{1,2}|[a-z]{3,9})\)?)$"
)
_WORD_VALUES = {
    **dict(
        zip(
            [
                "zero",
                "one",
                "two",
                "three",
                "four",
                "five",
                "six",
                "seven",
                "eight",
                "nine",
                "ten",
                "eleven",
                "twelve",
                "thirteen",
                "fourteen",
                "fifteen",
                "sixteen",
                "seventeen",
                "eighteen",
                "nineteen",
            ],
            range(20),
            strict=True,
        )
    ),
    **dict(
        zip(
            ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"],
            range(20, 100, 10),
            strict=True,
        )
    ),
}
_ORDINALS = {"first": 1, "second": 2, "third": 3}
_PARTS = {"half": 2, "halve": 2, "third": 3, "quarter": 4, "fourth": 4, "fifth": 5, "sixth": 6, "eighth": 8}
_ENGLISH_SCALES = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}
_SCALES = {**_ENGLISH_SCALES, "k": 3, "千": 3, "万": 4, "百万": 6, "亿": 8}
_SCALED = re.compile(
    r"([-+]?\d[\d,]*(?:\.\d+)?)\s*(hundred|thousand|million|billion|trillion|k(?!\w)|百万|[千万亿])", re.IGNORECASE
)
_CHINESE_DIGITS = {**dict(zip("零一二三四五六七八九", range(10), strict=True)), "两": 2, "〇": 0}
_MONTHS = [
    "january",
    "february",
    "march",
    "april",
    "may",
    "june",
    "july",
    "august",
    "september",
    "october",
    "november",
    "december",
]
_CLOCK = re.compile(
    r"(?P<zh>上午|下午|中午|晚上|早上|凌晨)?\s*(?P<hour>\d{1,2})(?:\s*[:]\s*(?P<minute>\d{2})(?:\s*:\s*(?P<second>\d{2}))?)?"
    r"\s*(?P<half>[ap]\s?\.?\s?m\b\.?)?(?:\s*o'?clock)?$",
    re.IGNORECASE,
)
_ZH_CLOCK = re.compile(r"(上午|下午|中午|晚上|早上|凌晨)?\s*(\d{1,2})\s*[时点]\s*(?:(\d{1,2})\s*分?|(半))?$")
_MONTH_NAME = r"(?P<month>[A-Za-z]{3,9})\.?"
_DATES = (
    re.compile(_MONTH_NAME + r"\s+(?P<day>\d{1,2})(?:st|nd|rd|th)?(?:\s*,?\s+(?P<year>\d{4}))?$"),
    re.compile(
        r"(?:the\s+)?(?P<day>\d{1,2})(?:st|nd|rd|th)?\s+(?:of\s+)?" + _MONTH_NAME + r"(?:\s*,?\s+(?P<year>\d{4}))?$"
    ),
    re.compile(r"(?P<year>\d{4})[-/](?P<month>\d{1,2})[-/](?P<day>\d{1,2})$"),
    re.compile(r"(?:(?P<year>\d{4})\s*年)?\s*(?P<month>\d{1,2})\s*月\s*(?P<day>\d{1,2})\s*[日号]$"),
)
_WEEKDAY = re.compile(r"^(?:mon|tues|wednes|thurs|fri|satur|sun)day\s*,?\s+", re.IGNORECASE)


def read_number(text: str) -> Number | None:
    """Parse a literal: plain, grouped, scientific, repeating, in a base or in words; return None for other text."""
    text = text.strip()
    for pattern in _NUMBERS:
        match = pattern.match(text)
        if match:
            return _decimal(match)
    if match := _SCIENTIFIC.match(text):
        return _scaled(match[1], int(match[2] or match[3] or match[4]))
    return _repeating(text) or _in_base(text) or _in_words(text)


def read_decimal_comma(text: str) -> Number | None:
    """Parse `1,22` or `1000,99` as a decimal with a comma; return None where a list is as likely (`1,2`, `3,456`)."""
    match = _COMMA.match(text.strip())
    if match is None:
        return None
    whole, part = match["whole"], match["part"]
    if len(part) == 2 or len(part) > 3 or whole == "0" or len(whole) > 3:
        return _decimal(match)
    return None


def _decimal(match: re.Match[str]) -> Number:
    groups = match.groupdict()
    whole = re.sub(r"[^\d]", "", groups["whole"] or "") or "0"
    part = groups.get("part")
    exponent = int(groups.get("exp") or 0)
    value = Fraction(int(whole + (part or "")), 10 ** len(part or "")) * Fraction(10) ** exponent
    literal = part is not None or groups.get("exp") is not None
    digits = len((whole + (part or "")).lstrip("0"))
    signed = -value if groups["sign"] == "-" else value
    return Number(signed, len(part or "") - exponent if literal else None, digits)


def _scaled(mantissa: str, exponent: int) -> Number:
    value = Fraction(mantissa) * Fraction(10) ** exponent
    part = mantissa.partition(".")[2]
    return Number(value, len(part) - exponent, len(re.sub(r"\D", "", mantissa).lstrip("0")))


def _repeating(text: str) -> Number | None:
    if match := _TWO_DOTS.match(text):
        sign, whole, fixed, cycle = match[1], match[2], match[3], match[4] + match[5] + match[6]
    elif match := _REPEATING.match(text):
        sign, whole, fixed, cycle = match[1], match[2], match[3], match[4] or match[5] or match[6]
    elif match := _ENDLESS.match(text):
        sign, whole, fixed, cycle = match.groups()
    else:
        return None
    scale = 10 ** len(fixed)
    value = Fraction(int((whole or "0") + fixed), scale) + Fraction(int(cycle), (10 ** len(cycle) - 1) * scale)
    return Number(-value if sign == "-" else value)


def _in_base(text: str) -> Number | None:
    match = _BASE.match(text)
    if match is None:
        return None
    name = match[3] or match[4]
    base = int(name) if name.isdigit() else _WORD_VALUES.get(name, 0)
    if not 2 <= base <= 36:
        return None
    try:
        value = int(match[2], base)
    except ValueError:
        return None
    return Number(Fraction(-value if match[1] == "-" else value), base=None if base == 10 else base)


def is_false_base(text: str) -> bool:
    """Return whether a text is written as a number in a base that lacks one of its digits, such as `385_3`."""
    match = _BASE.match(text)
    if match is None or not (match[3] or match[4] or "").isdigit() or not match[2].isdigit():
        return False
    return 2 <= int(match[3] or match[4]) <= 10 and any(int(digit) >= int(match[3] or match[4]) for digit in match[2])


def _in_words(text: str) -> Number | None:
    if match := re.fullmatch(r"(\d+)(?:st|nd|rd|th)", text):
        return Number(Fraction(match[1]))
    if match := _SCALED.fullmatch(text):
        return _scaled(match[1].replace(",", ""), _SCALES[match[2].casefold()])
    words = text.casefold().replace("-", " ").split()
    if not words or len(words) > 12:
        return None
    if words[0] in ("negative", "minus") and len(words) > 1:
        inner = read_number(" ".join(words[1:]))
        return None if inner is None else replace(inner, value=-inner.value)
    if len(words) == 1 and words[0] in _ORDINALS:
        return Number(Fraction(_ORDINALS[words[0]]))
    if len(words) == 2 and words[1].rstrip("s") in _PARTS and (words[0] in _WORD_VALUES or words[0] == "a"):
        return Number(Fraction(_WORD_VALUES.get(words[0], 1), _PARTS[words[1].rstrip("s")]))
    count = _counted(words)
    return _in_chinese(text) if count is None else Number(Fraction(count))


def _counted(words: list[str]) -> int | None:
    """Parse English number words such as `two thousand one hundred and five`."""
    total = current = last = 0
    for index, word in enumerate(words):
        if word == "and" and 0 < index < len(words) - 1 and last >= 100:
            continue
        if word in ("a", "an") and index == 0 and len(words) > 1:
            current = last = 1
        elif word in _WORD_VALUES:
            value = _WORD_VALUES[word]
            if index and (last < 20 or value >= last or (last < 100 and value >= 10)):
                return None
            current, last = current + value, value or 20
        elif word in ("hundred", "dozen") and current:
            last = 100 if word == "hundred" else 12
            current *= last
        elif word in _ENGLISH_SCALES and current:
            last = 10 ** _SCALES[word]
            total, current = total + current * last, 0
        else:
            return None
    return total + current


def _in_chinese(text: str) -> Number | None:
    if not re.fullmatch(r"[零一二三四五六七八九两〇十百千万亿]+", text):
        return None
    total = section = current = 0
    for sign in text:
        if sign in _CHINESE_DIGITS:
            current = _CHINESE_DIGITS[sign]
        elif sign in "万亿":
            total = (total + section + current) * (10**4 if sign == "万" else 10**8)
            section = current = 0
        else:
            section += (current or 1) * {"十": 10, "百": 100, "千": 1000}[sign]
            current = 0
    return Number(Fraction(total + section + current))


def read_clock(text: str) -> Clock | None:
    """Parse a time of day; return None for a bare number."""
    text = text.strip()
    if text.casefold() in ("noon", "midnight"):
        return Clock(43200 if text.casefold() == "noon" else 0, "pm" if text.casefold() == "noon" else "am")
    if match := _ZH_CLOCK.match(text):
        prefix, minute = match[1], 30 if match[4] else int(match[3] or 0)
        return _clock(int(match[2]), minute, 0, "am" if prefix in ("上午", "早上", "凌晨") else "pm" if prefix else "")
    match = _CLOCK.match(text)
    if match is None or not (match["minute"] or match["half"] or match["zh"] or "clock" in text):
        return None
    half = (match["half"] or "").casefold()[:1]
    if match["zh"]:
        half = "a" if match["zh"] in ("上午", "早上", "凌晨") else "p"
    return _clock(int(match["hour"]), int(match["minute"] or 0), int(match["second"] or 0), half + "m" if half else "")


def _clock(hour: int, minute: int, second: int, half: str) -> Clock | None:
    if hour > 24 or minute > 59 or second > 59:
        return None
    if half:
        hour = hour % 12 + (12 if half == "pm" else 0) if hour <= 12 else hour
    return Clock(hour * 3600 + minute * 60 + second, half)


def read_day(text: str) -> Day | None:
    """Parse a calendar date in one of the common formats."""
    text = _WEEKDAY.sub("", text.strip()).replace("\\", " ").strip()
    for pattern in _DATES:
        match = pattern.match(text)
        if match is None:
            continue
        month = _month(match["month"])
        if month and 1 <= int(match["day"]) <= 31:
            return Day(month, int(match["day"]), int(match["year"]) if match["year"] else None)
    return None


def _month(name: str) -> int | None:
    if name.isdigit():
        return int(name) if 1 <= int(name) <= 12 else None
    name = name.casefold()
    for number, month in enumerate(_MONTHS, 1):
        if name == month or (name == month[:3] or name == month[:4]):
            return number
    return None
