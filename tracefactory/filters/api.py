"""The words a filter is written in: `trace_filter`, `column_filter`, `Params`, `KEEP`, `drop`, `drop_if`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Self, TypeVar, overload

import polars as pl
from pydantic import ConfigDict, Field, model_validator

from tracefactory.core.decisions import REASON
from tracefactory.core.rows import Frozen

F = TypeVar("F", bound=Callable[..., Any])

Files = Mapping[str, str]
"""The texts of the files that a filter declared, by the name it declared them under."""

_MARK = "__tracefactory_filter__"


class Params(Frozen):
    """Base of a filter's parameters: immutable; unknown names are refused, and defaults are validated too."""

    model_config = ConfigDict(validate_default=True)

    def reads_measures(self) -> tuple[str, ...]:
        """Return the names of the measures that a `trace_filter` reads, so that a pipeline without them is refused.

        A `*` in a name is any name, where the trace decides. What a `column_filter` reads is known from its rules.
        """
        return ()


class Band(Params):
    """Bounds of a value, both inclusive; None is no bound, and at least one has to be given."""

    min: float | None = Field(default=None, description="The smallest value that is kept.")
    max: float | None = Field(default=None, description="The largest value that is kept.")

    @model_validator(mode="after")
    def _bounds_make_sense(self) -> Self:
        if self.min is None and self.max is None:
            raise ValueError("give at least one of min, max")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"the minimum {self.min:g} is above the maximum {self.max:g}")
        return self

    def below(self, value: float) -> bool:
        """Tell whether a value is under the minimum; for filters that work on rows."""
        return self.min is not None and value < self.min

    def above(self, value: float) -> bool:
        """Tell whether a value is over the maximum."""
        return self.max is not None and value > self.max


class StudentBand(Band):
    """Bounds of a measure under one student."""

    student: str = Field(min_length=1, description="A model that a stage before this one measured the traces under.")


class Rule(NamedTuple):
    """One rule of a column filter: rows for which `when` is true are dropped for `reason`."""

    when: pl.Expr
    reason: str
    detail: pl.Expr


Rules = Iterable[Rule]


def column(name: str) -> pl.Expr:
    """Return a column of the rows: one of their own, such as completion_tokens, or a measure such as student/tokens."""
    return pl.col(name)


def drop_if(when: pl.Expr, reason: str, detail: str = "", *values: pl.Expr) -> Rule:
    """Return the rule that drops rows for which `when` is true; where it is null, the row stays.

    Args:
        when: a condition on columns.
        reason: a stable snake_case identifier such as "too_long".
        detail: free text for a person, with a `{}` for each of `values`.
        values: what stands in the detail.

    Raises:
        ValueError: when the reason is no snake_case identifier.
    """
    if not REASON.fullmatch(reason):
        raise ValueError(f"reason {reason!r} is not snake_case; put what varies from row to row into the detail")
    return Rule(when.fill_null(value=False), reason, pl.format(detail, *values) if values else pl.lit(detail))


def band(name: str, bounds: Band, *, below: str, above: str, unit: str = "") -> Iterator[Rule]:
    """Yield the rules that keep rows whose value of a column lies within bounds, and drop those without a value.

    Args:
        name: the column.
        bounds: what is kept.
        below: the reason of rows under the minimum.
        above: the reason of rows over the maximum.
        unit: of the value, for the detail.
    """
    value, of = column(name), f" {unit}" if unit else ""
    shown = value.round(4)
    yield drop_if(value.is_null() | value.is_nan(), "not_measured", f"the row has no value of {name}")
    if bounds.min is not None:
        yield drop_if(value < bounds.min, below, f"{{}}{of}, at least {bounds.min:g}", shown)
    if bounds.max is not None:
        yield drop_if(value > bounds.max, above, f"{{}}{of}, at most {bounds.max:g}", shown)


@dataclass(frozen=True)
class FilterMark:
    """What the decorator notes on a filter function: whether it works on columns, and the files it reads."""

    columns: bool
    files: tuple[str, ...]


@overload
def trace_filter(function: F, /) -> F: ...


@overload
def trace_filter(*, files: tuple[str, ...] = ()) -> Callable[[F], F]: ...


def trace_filter(function: F | None = None, /, *, files: tuple[str, ...] = ()) -> F | Callable[[F], F]:
    """Declare a function `(trace, params) -> Decision` to be the filter of its file.

    It is called for every trace (or every problem, if its first argument is a Problem), with all of its text. The
    function stays an ordinary function, so a test can call it.

    Args:
        files: the files that it needs, from the project's folder; their texts come as a third argument `files`. What is
            in them counts for the stage's key, so a filter whose file changed is run again.
    """
    return _marked(function, FilterMark(columns=False, files=files))


@overload
def column_filter(function: F, /) -> F: ...


@overload
def column_filter(*, files: tuple[str, ...] = ()) -> Callable[[F], F]: ...


def column_filter(function: F | None = None, /, *, files: tuple[str, ...] = ()) -> F | Callable[[F], F]:
    """Declare a function `(params) -> Rules` to be the filter of its file.

    Its rules are conditions on columns and are evaluated for all rows at once, without reading any text: a threshold
    over a million traces takes about a second. The first rule that is true for a row is the reason it is dropped for.

    Args:
        files: as for `trace_filter`; their texts come as a second argument `files`.
    """
    return _marked(function, FilterMark(columns=True, files=files))


def mark_of(thing: object) -> FilterMark | None:
    """Return what a decorator noted on a function, or None for anything that none decorated."""
    mark = getattr(thing, _MARK, None)
    return mark if isinstance(mark, FilterMark) else None


def _marked(function: F | None, mark: FilterMark) -> F | Callable[[F], F]:
    def note(decide: F) -> F:
        setattr(decide, _MARK, mark)
        return decide

    return note if function is None else note(function)


class FilterFailed(Exception):  # noqa: N818 - it names what happened, as in "filter failed"
    """A filter raised, or returned something else than a Decision, for one row. That row is an error, not a drop."""

    def __init__(self, name: str, row_id: str, traceback_text: str) -> None:
        self.name = name
        self.row_id = row_id
        self.traceback_text = traceback_text
        super().__init__(f"filter {name!r} failed on row {row_id}:\n{traceback_text}")

    def __reduce__(self) -> tuple[type[FilterFailed], tuple[str, str, str]]:
        return type(self), (self.name, self.row_id, self.traceback_text)
