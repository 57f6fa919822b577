"""Tell a written value from an expression that has yet to be calculated.

A verifier calculates: it accepts "3*4+6" for 18, and 0.25 for a fourth. A trace that is cut there teaches to stop
before the last step. So a statement counts as the answer only where the gold answer itself is written: the same number,
with or without a unit, words, or the same expression, up to notation and the order of summands. The rules err towards
"not yet calculated", because a trace that is not cut costs tokens, and one that is cut too early loses its result.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from fractions import Fraction
from itertools import pairwise

from tracefactory.maths.notation import OPERATIONS, THOUSANDS
from tracefactory.text.steps.protect import protected
from tracefactory.text.steps.sentences import sentence_starts

QUOTED = 60
"""Characters of an end that are quoted."""
MAX_VALUE = 600
"""Characters of a value that are read; the patterns take quadratic time."""

_POWER = re.compile(r"(?<=[\w)])\*\*(?=[\w(])")
_MARKUP = re.compile(
    r"\\(?:displaystyle|textstyle|left|right|limits|quad|qquad|bigg?|Bigg?)(?![A-Za-z])|\\[,;:!() \[\]]|\*\*|__|~"
    r"|\\?\$|[€£¥`]|\{,\}|\^\s*\{?\s*\\(?:circ|degree)(?![A-Za-z])\s*\}?|°|\\degree(?![A-Za-z])"
)
_NOTATION = (
    (re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf|mathit|operatorname|boxed|fbox|mbox)\s*\{([^{}]*)\}"), r"\1"),
    (re.compile(r"\\[dtc]?frac(?![A-Za-z])\s*(\d)\s*(\d)"), r" (\1)/(\2)"),
    (re.compile(r"\\[dtc]?frac(?![A-Za-z])\s*\{([^{}]*)\}\s*\{([^{}]*)\}"), r" (\1)/(\2)"),
    (re.compile(r"\\sqrt\s*(?:\{([^{}]*)\}|(\d))|√\s*\(?(\w+)\)?"), r" sqrt(\1\2\3)"),
    (re.compile(r"\^\s*\{([^{}]*)\}"), r"^(\1)"),
    *OPERATIONS,
    (re.compile(r"\\pi(?![A-Za-z])|π"), "pi"),
    (re.compile(r"\\%|\bpercent\b"), "%"),
    THOUSANDS,
    (re.compile(r"(?<![\w)])\((\w+(?:\.\d+)?|\s*sqrt\(\w+\))\)"), r"\1"),
    (re.compile(r"(?:\A|(?<=[=,]))\s*\((-\w+(?:\.\d+)?)\)"), r"\1"),
)
_DECIMAL = re.compile(r"(?<!\d)(\d*)\.(\d+)(?![\d.])")
_NAMED = re.compile(r"\A\s*(?:[^\W\d]\w*(?:_\{\w+\})?(?:\([^()]*\))?)?\s*(?:=|\\in(?![A-Za-z])|∈|\bis\b)\s*(?=\S)")

_NUMBER = r"(?:\d+(?:\.\d+)?|\.\d+)"
_UNIT = r"[^\W\d_]+(?:\^?\(?-?\d\)?)?"
_QUANTITY = re.compile(
    rf"(?:[^\W\d_]+\s+){{0,4}}(?P<number>[+-]?{_NUMBER})(?:\*10\^\(?(?P<power>-?\d{{1,4}})\)?)?\s*(?P<percent>%?)"
    rf"(?P<unit>\s*{_UNIT}(?:\s*[/*\s-]\s*{_UNIT})*)?"
)
_FRACTION = re.compile(r"(\d+)/(\d+)")
_AFTER_EXPRESSION = re.compile(r"(?<=[\d)])\s+[^\W\d_]{2,}(?:\s+[^\W\d_]+)*\Z")
_OPERATION = re.compile(r"[*^±=!√\d]|(?<![^\W\d_])[^\W\d_]\s*[-+/]|\s[-+/]\s|\bpi\b|\\")
_WORDS = re.compile(
    r"\d[\s%)]*(?:plus|minus|times|divided by|multiplied by|over|modulo|mod)\s+[(-]*\d|\d\s+(?:squared|cubed)\b"
    r"|\d\s*%?\s+of\s+\(?\d|\b(?:half|third|quarter|sum|product|difference|quotient|remainder|root) of\b.*\d"
    r"|\b(?:twice|double|triple|thrice)\s+\(?\d",
    re.IGNORECASE | re.DOTALL,
)

_TRAILING = re.compile(r"(?:[\s.,;:!。，；！$)\]}*_]|\\[)\]]|\\end\{\w+\*?\})+\Z")
_OPEN_END = re.compile(
    r"(?:[=≤≥≈≡±×÷⋅−^]|\s[-–+/<>]|[\d)]\s*[+/]|\\(?:times|cdot|div|pm|approx|equiv|leq?|geq?|frac|sqrt))\Z"
)
_TERM = rf"[(]*-?(?:sqrt\()?{_NUMBER}[)%]*"
_CALCULATION = re.compile(rf"(?:\A|(?<=[\s=:(≈]))(?P<all>{_TERM}(?:(?:\s*[+*/^]\s*|\s+-\s+|(?<==\d)-)-?{_TERM})+)\Z")
_RELATION = re.compile(r"=|≈|\\approx(?![A-Za-z])")


def is_evaluated(value: str, golds: Iterable[str]) -> bool:
    """Return whether a value is written out, so that nothing is left to calculate.

    Args:
        value: a value that the verifier accepts, as the text has it.
        golds: the gold answers. An expression is a value where one of them is the same expression.
    """
    if len(value) > MAX_VALUE:
        return value.strip() in [gold.strip() for gold in golds]
    written, known = _plain(value), [_plain(gold) for gold in golds if len(gold) <= MAX_VALUE]
    if any(_is_value(written, gold) for gold in known):
        return True
    parts = _parts(written)
    wanted = [part for gold in known for part in _parts(gold)]
    return len(parts) > 1 and all(any(_is_value(part, one) for one in wanted) for part in parts)


def is_literal(value: str) -> bool:
    """Return whether a value is a number, with or without a unit, or words, whatever the answer is."""
    plain = _plain(value) if len(value) <= MAX_VALUE else ""
    return bool(plain) and not _WORDS.search(plain) and bool(_quantity(plain) or not _OPERATION.search(plain))


def unevaluated_end(text: str, golds: Iterable[str] = ()) -> str | None:
    """Return the end of a text that stops at an operator or at a calculation, None for every other end.

    A calculation is of numbers alone, such as "so we need 3 * 4 + 6": what an expression with letters leaves to do
    cannot be told. A fraction of two whole numbers is one where it is a whole number ("= 765/3").

    Args:
        text: the text.
        golds: the gold answers, which may be calculations themselves.
    """
    spans = [(span.start, span.end) for span in protected(text)]
    bounds = [0, *sentence_starts(text, 0, len(text), spans), len(text)]
    last = next((text[start:end] for start, end in reversed(list(pairwise(bounds))) if text[start:end].strip()), "")
    last = last[-MAX_VALUE:]
    quoted = " ".join(last.split())[-QUOTED:]
    if _OPEN_END.search(_TRAILING.sub("", last)):
        return quoted
    tail = _plain(_RELATION.split(last)[-1])
    found = _CALCULATION.search(tail)
    if found is None or is_evaluated(found["all"], golds) or _quantity(found["all"]):
        return None
    fraction = _FRACTION.fullmatch(found["all"])
    whole = fraction is None or not int(fraction[2]) or int(fraction[1]) % int(fraction[2]) == 0
    return quoted if whole else None


def _is_value(written: str, gold: str) -> bool:
    """Return whether a value is a gold answer as it is written, or the same number; both in plain notation."""
    if any(_terms(one) == _terms(gold) for one in (written, _AFTER_EXPRESSION.sub("", written))):
        return True
    if _WORDS.search(written):
        return False
    one, other = _quantity(written), _quantity(gold)
    if one is None or other is None:
        return not _OPERATION.search(written)  # words
    # 6 x^2/x is no quantity in units of x^2/x where the answer is a term with letters.
    return not re.search(r"\b[^\W\d_]\b", other["unit"] or "") and bool(_numbers(one) & _numbers(other))


def _quantity(plain: str) -> re.Match[str] | None:
    return _QUANTITY.fullmatch(plain)


def _numbers(quantity: re.Match[str]) -> set[Fraction]:
    """Return the value of a quantity; of one in percent also the share."""
    value = Fraction(quantity["number"]) * Fraction(10) ** int(quantity["power"] or 0)
    return {value, value / 100} if quantity["percent"] else {value}


def _plain(text: str) -> str:
    """Return a value in plain notation: no markup, one sign for each operation, numbers without separators."""
    text, before = _MARKUP.sub(" ", _POWER.sub("^", text)), ""
    while before != text:
        before = text
        for pattern, plain in _NOTATION:
            text = pattern.sub(plain, text)
    text = _DECIMAL.sub(lambda match: _decimal(match[1], match[2]), text)
    text = re.sub(r"(?<=\d)\s*\*\s*(?=[A-Za-z])", "", text)
    text = re.sub(r"\s*([*/^+=,])\s*", r"\1", " ".join(text.split())).strip(" .,;:。，；*_")
    return _NAMED.sub("", text).strip()


def _decimal(whole: str, digits: str) -> str:
    digits = digits.rstrip("0")
    return f"{whole or '0'}.{digits}" if digits else whole or "0"


def _terms(plain: str) -> list[str]:
    """Return the summands of an expression with their signs, sorted, in lower case and without spaces."""
    text = re.sub(r"\s+", "", plain).lower()
    text = text if text[:1] in ("+", "-") else f"+{text}"
    cuts, depth = [0], 0
    for index, sign in enumerate(text):
        depth += (sign in "([{") - (sign in ")]}")
        if index and sign in "+-" and depth == 0 and text[index - 1] not in "*/^(":
            cuts.append(index)
    return sorted(text[start:end] for start, end in pairwise([*cuts, len(text)]))


def _parts(plain: str) -> list[str]:
    """Return the entries of a list, a pair or a set in plain notation; an interval is a pair."""
    inner = plain[1:-1] if plain[:1] in ("(", "[", "{") and plain[-1:] in (")", "]", "}") else plain
    inner = re.sub(r"\s+and\s+", ",", inner)
    cuts, depth = [-1], 0
    for index, sign in enumerate(inner):
        depth += (sign in "([{") - (sign in ")]}")
        if sign == "," and depth == 0:
            cuts.append(index)
    return [_NAMED.sub("", inner[start + 1 : end].strip()).strip() for start, end in pairwise([*cuts, len(inner)])]
