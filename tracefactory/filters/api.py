"""The functions and classes that filter files use: decorators, parameters, and rules on columns."""

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
"""The texts of the files that a filter declares, by the names in its declaration."""

_MARK = "__tracefactory_filter__"


class Params(Frozen):
    """The base of a filter's parameters: immutable, without unknown names, and with validated defaults."""

    model_config = ConfigDict(validate_default=True)

    def reads_measures(self) -> tuple[str, ...]:
        """Return the names of the measures that a `trace_filter` reads; a pipeline without them is a mistake.

        A `*` stands for any part of a name, when it depends on the trace. The columns of a `column_filter` are known
        from its rules.
        """
        return ()


class Band(Params):
    """Inclusive bounds of a value. None is no bound; at least one bound is required."""

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
        """Return whether a value is less than the minimum; for filters that work on rows."""
        return self.min is not None and value < self.min

    def above(self, value: float) -> bool:
        """Return whether a value is greater than the maximum."""
        return self.max is not None and value > self.max


class StudentBand(Band):
    """Bounds of a measure under one student."""

    student: str = Field(min_length=1, description="The model under which an earlier stage measured the traces.")


class Rule(NamedTuple):
    """One rule of a column filter: rows for which `when` is true are dropped for `reason`."""

    when: pl.Expr
    reason: str
    detail: pl.Expr


Rules = Iterable[Rule]


def column(name: str) -> pl.Expr:
    """Return a column of the rows: a field such as completion_tokens, or a measure such as student/tokens."""
    return pl.col(name)


def drop_if(when: pl.Expr, reason: str, detail: str = "", *values: pl.Expr) -> Rule:
    """Return the rule that drops the rows for which a condition is true.

    Args:
        when: the condition on columns; a row for which it is null is kept.
        reason: a stable snake_case identifier such as "too_long".
        detail: free text for a person, with a `{}` for each of `values`.
        values: the values to insert into the detail.

    Raises:
        ValueError: when the reason is not a snake_case identifier.
    """
    if not REASON.fullmatch(reason):
        raise ValueError(f"reason {reason!r} is not snake_case; put what varies from row to row into the detail")
    return Rule(when.fill_null(value=False), reason, pl.format(detail, *values) if values else pl.lit(detail))


def band(name: str, bounds: Band, *, below: str, above: str, unit: str = "") -> Iterator[Rule]:
    """Yield the rules that drop rows whose value of a column is missing or outside of bounds.

    Args:
        name: the name of the column.
        bounds: the bounds of the values to keep.
        below: the reason for values less than the minimum.
        above: the reason for values greater than the maximum.
        unit: the unit of the value, for the detail.
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
    """The declaration of a decorated filter: whether it works on columns, and the files that it reads."""

    columns: bool
    files: tuple[str, ...]


@overload
def trace_filter(function: F, /) -> F: ...


@overload
def trace_filter(*, files: tuple[str, ...] = ()) -> Callable[[F], F]: ...


def trace_filter(function: F | None = None, /, *, files: tuple[str, ...] = ()) -> F | Callable[[F], F]:
    """Declare a function `(trace, params) -> Decision` to be the filter of its file.

    It is called for every trace, or for every problem if its first argument is a Problem, or for rows of both kinds if
    it is a `Problem | Trace`, with the whole row. The function is returned unchanged, so a test can call it.

    Args:
        function: the function.
        files: the files that it needs, relative to the project; their texts are its third argument, `files`. Their
            contents are in the stage's key, so the filter runs again when a file changes.
    """
    return _marked(function, FilterMark(columns=False, files=files))


@overload
def column_filter(function: F, /) -> F: ...


@overload
def column_filter(*, files: tuple[str, ...] = ()) -> Callable[[F], F]: ...


def column_filter(function: F | None = None, /, *, files: tuple[str, ...] = ()) -> F | Callable[[F], F]:
    """Declare a function `(params) -> Rules` to be the filter of its file.

    Its rules are conditions on columns and are evaluated for all rows together, without reading texts: a threshold over
    a million traces takes about a second. A row is dropped for the reason of the first rule that is true for it.

    Args:
        function: the function.
        files: as for `trace_filter`; their texts are its second argument, `files`.
    """
    return _marked(function, FilterMark(columns=True, files=files))


def mark_of(thing: object) -> FilterMark | None:
    """Return the declaration of a decorated filter, None for any other object."""
    mark = getattr(thing, _MARK, None)
    return mark if isinstance(mark, FilterMark) else None


def _marked(function: F | None, mark: FilterMark) -> F | Callable[[F], F]:
    def note(decide: F) -> F:
        setattr(decide, _MARK, mark)
        return decide

    return note if function is None else note(function)


class FilterFailed(Exception):  # noqa: N818 - it names what happened, as in "filter failed"
    """A filter raised, or did not return a Decision, for one row. That row is an error and is not dropped."""

    def __init__(self, name: str, row_id: str, traceback_text: str) -> None:
        self.name = name
        self.row_id = row_id
        self.traceback_text = traceback_text
        super().__init__(f"filter {name!r} failed on row {row_id}:\n{traceback_text}")

    def __reduce__(self) -> tuple[type[FilterFailed], tuple[str, str, str]]:
        return type(self), (self.name, self.row_id, self.traceback_text)
