"""The typed values that answers are parsed into before they are compared."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from fractions import Fraction

from tracefactory.answers.units import Unit
from tracefactory.maths.expression import Node


@dataclass(frozen=True)
class Text:
    """Words: a name, yes or no, an option, or any other text that is not mathematics."""

    text: str


@dataclass(frozen=True)
class Quantity:
    """A number or expression with its percent sign, unit or counted nouns.

    `node` is None when `source` is outside the grammar. `decimals` and `digits` are set for a decimal literal: the
    number of digits after the point and of significant digits. `as_symbols` is the node with unit letters as variables;
    `glued` says that the unit is one letter without a space, as in `34m`. `per` is the time of a rate, `$34 a month`.
    """

    source: str
    node: Node | None
    percent: bool = False
    unit: Unit | None = None
    nouns: frozenset[str] = frozenset()
    decimals: int | None = None
    digits: int = 0
    base: int | None = None
    as_symbols: Node | None = None
    glued: bool = False
    per: Unit | None = None


@dataclass(frozen=True)
class Approximation:
    """An exact value with a decimal beside it, `40\\pi \\approx 125.66`: the exact value decides."""

    exact: Value
    decimal: Value


@dataclass(frozen=True)
class Sequence:
    """Several values, of kind `list` (without brackets), `tuple` or `set`; `brackets` are those of a tuple."""

    kind: str
    items: tuple[Value, ...]
    brackets: str = ""


@dataclass(frozen=True)
class Interval:
    """All reals between two ends; an end of None is infinite."""

    low: Quantity | None
    high: Quantity | None
    low_closed: bool = False
    high_closed: bool = False


@dataclass(frozen=True)
class Region:
    """A union of intervals and finite sets, without a finite set."""

    parts: tuple[Value, ...]
    without: tuple[Value, ...] = ()


@dataclass(frozen=True)
class Relation:
    """Terms with relation signs between them: `x = 1`, `0 <= x < 1`, `x in [0, 1]`."""

    terms: tuple[Value, ...]
    signs: tuple[str, ...]
    sources: tuple[str, ...]


@dataclass(frozen=True)
class Matrix:
    """A matrix or column vector, row by row; `kind` is `v` for a determinant and `V` for a norm."""

    rows: tuple[tuple[Value, ...], ...]
    kind: str = ""


@dataclass(frozen=True)
class Clock:
    """A time of day in seconds. `half` is am or pm if it was given; `seconds` then counts from midnight."""

    seconds: int
    half: str = ""


@dataclass(frozen=True)
class Day:
    """A calendar date; the year is None when it was not given."""

    month: int
    day: int
    year: int | None = None


@dataclass(frozen=True)
class Ratio:
    """A ratio of two to four quantities, `3:4`."""

    parts: tuple[Value, ...]


@dataclass(frozen=True)
class Number:
    """A parsed literal: its value and how it was written."""

    value: Fraction
    decimals: int | None = None
    digits: int = 0
    base: int | None = None


Value = Text | Quantity | Approximation | Sequence | Interval | Region | Relation | Matrix | Clock | Day | Ratio
EMPTY = Sequence("set", ())
REALS = Interval(None, None)


@dataclass(frozen=True)
class Reading:
    """The possible interpretations of one answer, most likely first; `text` is its normalised form."""

    text: str
    values: tuple[Value, ...] = field(default_factory=tuple)


def as_interval(value: Value) -> Interval | None:
    """Return an interval, or the pair `(a, b)` as an open interval; None for other values."""
    if isinstance(value, Interval):
        return value
    if isinstance(value, Sequence) and value.kind == "tuple" and value.brackets == "()":
        return interval_of(value.items)
    return None


def interval_of(items: tuple[Value, ...], low_closed: bool = False, high_closed: bool = False) -> Interval | None:
    """Return the interval between two quantities, open at an infinite end; None for other items."""
    ends = [None if infinite(item) else item for item in items if isinstance(item, Quantity)]
    if len(items) != 2 or len(ends) != 2:
        return None
    low, high = ends
    return Interval(low, high, low_closed and low is not None, high_closed and high is not None)


def infinite(value: Quantity) -> bool:
    return re.sub(r"[\s+{}-]", "", value.source) in (r"\infty", "infty", "infinity", "inf", "oo")
