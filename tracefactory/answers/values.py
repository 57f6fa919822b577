"""What an answer can be: the typed values that answers are read into before they are compared."""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction

from tracefactory.answers.units import Unit
from tracefactory.maths.expression import Node


@dataclass(frozen=True)
class Text:
    """Words: a name, yes or no, an option, anything that is not mathematics."""

    text: str


@dataclass(frozen=True)
class Quantity:
    """A number or expression with what stands around it.

    `node` is None when the grammar does not know `source`. `decimals` and `digits` are set for a decimal literal: how
    many digits follow the point and how many are significant. `as_symbols` reads the unit letters as variables.
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
    """Several values: `list` (written bare), `tuple` or `set`; `brackets` is how a tuple was written."""

    kind: str
    items: tuple[Value, ...]
    brackets: str = ""


@dataclass(frozen=True)
class Interval:
    """All reals between two ends; None is infinity."""

    low: Quantity | None
    high: Quantity | None
    low_closed: bool = False
    high_closed: bool = False


@dataclass(frozen=True)
class Region:
    """A union of intervals and finite sets, less a finite set."""

    parts: tuple[Value, ...]
    without: tuple[Value, ...] = ()


@dataclass(frozen=True)
class Relation:
    """Terms with relations between them: `x = 1`, `0 <= x < 1`, `x in [0, 1]`. `signs` is one shorter than `terms`."""

    terms: tuple[Value, ...]
    signs: tuple[str, ...]
    sources: tuple[str, ...]


@dataclass(frozen=True)
class Matrix:
    rows: tuple[tuple[Value, ...], ...]


@dataclass(frozen=True)
class Clock:
    """A time of day in seconds; `half` is am or pm when said, and `seconds` is then on the 24-hour clock."""

    seconds: int
    half: str = ""


@dataclass(frozen=True)
class Day:
    month: int
    day: int
    year: int | None = None


@dataclass(frozen=True)
class Ratio:
    parts: tuple[Value, ...]


@dataclass(frozen=True)
class Number:
    """A literal as read: its value and how it was written."""

    value: Fraction
    decimals: int | None = None
    digits: int = 0
    base: int | None = None


Value = Text | Quantity | Sequence | Interval | Region | Relation | Matrix | Clock | Day | Ratio
EMPTY = Sequence("set", ())
REALS = Interval(None, None)


@dataclass(frozen=True)
class Reading:
    """The ways one answer can be read, most likely first; `text` is its normalised spelling."""

    text: str
    values: tuple[Value, ...] = field(default_factory=tuple)
