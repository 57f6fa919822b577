"""The typed values that answers are parsed into before they are compared."""

from __future__ import annotations

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
    number of digits after the point and of significant digits. `as_symbols` is the node with unit letters as variables.
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
    """A matrix or column vector, row by row."""

    rows: tuple[tuple[Value, ...], ...]


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


Value = Text | Quantity | Sequence | Interval | Region | Relation | Matrix | Clock | Day | Ratio
EMPTY = Sequence("set", ())
REALS = Interval(None, None)


@dataclass(frozen=True)
class Reading:
    """The possible interpretations of one answer, most likely first; `text` is its normalised form."""

    text: str
    values: tuple[Value, ...] = field(default_factory=tuple)
