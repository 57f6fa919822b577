"""What an answer looks like: a number, an expression, a relation, several parts, a date or time, or words.

The shape of the gold answer says which part of a concluding sentence can be the answer; it says nothing of its value.
"""

from __future__ import annotations

import re
from typing import Literal

from tracefactory.answers.reading import read
from tracefactory.answers.relations import named_value
from tracefactory.answers.values import (
    Approximation,
    Clock,
    Day,
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
)
from tracefactory.maths.evaluate import symbols

Shape = Literal["any", "number", "expression", "relation", "ratio", "parts", "moment", "option", "words"]
"""`any` where nothing is known. `parts` are points, sets, lists, intervals and matrices, `moment` a date or a time."""

_RELATION_SIGN = re.compile(r"[=<>≤≥≈≡∈]|\\(?:le|ge|leq|geq|in|equiv|approx)(?![a-zA-Z])")
_AMOUNT = r"[-−]?[$€£]?(?<!\d)(?<!\d\.)\d[\d.]*+\s*(?:°|%|[a-z]{1,3}\b)?"
PATTERNS: dict[Shape, re.Pattern[str]] = {
    "ratio": re.compile(r"(?<![\d:.])\d[\d.]*+(?:\s*:\s*\d[\d.]*+){1,20}(?![\d:])"),
    "moment": re.compile(
        r"(?<![\d:])\d{1,2}(?::\d{2}){1,2}(?:\s*[ap]\.?\s?m\b\.?)?|(?<![\d:])\d{1,2}\s*[ap]\.?m\b\.?|\d{4}-\d{2}-\d{2}"
        r"|(?:January|February|March|April|May|June|July|August|September|October|November|December)\s+\d{1,2}(?:st|nd|rd|th)?"
        r"(?:,?\s+\d{4})?|\d{1,2}(?:st|nd|rd|th)?\s+(?:of\s+)?(?:January|February|March|April|May|June|July|August|September"
        r"|October|November|December)(?:,?\s+\d{4})?|\d{1,2}\s*[时点]\s*(?:\d{1,2}\s*分)?|(?:\d{4}\s*年)?\d{1,2}\s*月\s*\d{1,2}\s*[日号]",
        re.IGNORECASE,
    ),
    "parts": re.compile(
        rf"[(\[{{][^()\[\]{{}}\n]{{1,80}},[^()\[\]{{}}\n]{{1,80}}[)\]}}]|{_AMOUNT}(?:\s*,\s*{_AMOUNT}){{0,40}}\s*,?\s*\b(?:and|or)\b\s*{_AMOUNT}"
    ),
}
"""What answers of some shapes look like in running text."""


def shape_of(gold: Reading) -> Shape:
    """Return the shape of a gold answer."""
    if not gold.values:
        return "any"
    return _shape(gold.values[0])


def fits(piece: str, shape: Shape) -> bool:
    """Return whether a text can be read as an answer of a shape."""
    if shape in ("any", "option"):
        return True
    values = read(piece).values
    return any(_fits(value, shape) for value in values)


def _fits(value: Value, shape: Shape) -> bool:
    own = _shape(value)
    if shape == "words":
        return own == "words"
    if shape in ("expression", "relation"):
        return (
            own in ("expression", "relation", "number", "any") if shape == "expression" else own in ("relation", "any")
        )
    if shape == "number" and own == "ratio":
        return True
    if isinstance(value, Relation) and own == "relation" and shape == "number":
        last = value.terms[-1]
        return set(value.signs) == {"="} and _shape(last) == "number"
    return own in (shape, "any") and not (own == "any" and shape in ("words", "moment"))


def _shape(value: Value) -> Shape:
    match value:
        case Text():
            return "words"
        case Clock() | Day():
            return "moment"
        case Interval() | Region() | Matrix() | Sequence():
            return "parts"
        case Ratio():
            return "ratio"
        case Approximation():
            return _shape(value.exact)
        case Relation():
            named = named_value(value)
            own: Shape = "relation" if named is None else _shape(named)
            return "relation" if own == "expression" else own
        case Quantity():
            if value.node is None:
                return "relation" if _RELATION_SIGN.search(value.source) else "any"
            return "expression" if symbols(value.node) else "number"
