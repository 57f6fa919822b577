"""The words a filter is written in: `trace_filter`, `Params`, `KEEP` and `drop(reason)`."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar, overload

from pydantic import ConfigDict

from tracefactory.core.schema import Frozen

F = TypeVar("F", bound=Callable[..., Any])
Measure = Callable[..., Mapping[str, float]]

REASON = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")
"""What a drop reason looks like: it is counted, compared between runs and written into cards; so, an identifier."""

_MARK = "__trace_filter__"


class Params(Frozen):
    """Base of a filter's parameters: immutable; unknown names are refused, and defaults are validated too."""

    model_config = ConfigDict(validate_default=True)

    def reads_measures(self) -> tuple[str, ...]:
        """Return the names of the measures the filter reads; a pipeline in which no stage files one is refused.

        A `*` in a name stands for any name, where the trace decides.
        """
        return ()


@dataclass(frozen=True)
class Decision:
    """What a filter decided: keep (`reason` is None) or drop for a stable reason, with free text as detail."""

    reason: str | None = None
    detail: str | None = None

    @property
    def keep(self) -> bool:
        return self.reason is None

    def __bool__(self) -> NoReturn:
        """Raise: an object that is always true would make every `if decide(...)` keep everything."""
        raise TypeError("a Decision has no truth value; ask for .keep")


KEEP = Decision()
"""The decision to keep a trace."""


def drop(reason: str, detail: str | None = None) -> Decision:
    """Return the decision to drop a trace.

    Args:
        reason: a stable snake_case identifier such as "too_long". Numbers and quotes belong into `detail`.
        detail: free text for a person who looks at this one row.

    Raises:
        ValueError: when the reason is no snake_case identifier.
    """
    if not REASON.fullmatch(reason):
        raise ValueError(f"drop reason {reason!r} is not snake_case; put what varies from row to row into the detail")
    return Decision(reason, detail)


@dataclass(frozen=True)
class FilterMark:
    """What the decorator notes on a filter function: its measuring half, and what that half has to be given."""

    measure: Measure | None
    needs: tuple[str, ...]


@overload
def trace_filter(function: F, /) -> F: ...


@overload
def trace_filter(*, measure: Measure | None = None, needs: tuple[str, ...] = ()) -> Callable[[F], F]: ...


def trace_filter(
    function: F | None = None, /, *, measure: Measure | None = None, needs: tuple[str, ...] = ()
) -> F | Callable[[F], F]:
    """Declare a function `(trace, params) -> Decision` to be the filter of its file.

    The function stays an ordinary function, so a test can call it.

    Args:
        measure: the expensive half, `(trace, params, **needs) -> mapping of name to number`. Its numbers are stored,
            and the function finds them in `trace.measures` under "<filter>/<name>". Thresholds belong into the
            function: moving one then costs no new measurement.
        needs: what `measure` takes by keyword besides, such as ("student",).
    """

    def mark(decide: F) -> F:
        setattr(decide, _MARK, FilterMark(measure, needs))
        return decide

    return mark if function is None else mark(function)


def mark_of(thing: object) -> FilterMark | None:
    """Return what `trace_filter` noted on a function, or None for anything it did not decorate."""
    mark = getattr(thing, _MARK, None)
    return mark if isinstance(mark, FilterMark) else None


class FilterFailed(Exception):  # noqa: N818 - it names what happened, as in "filter failed"
    """A filter raised, or returned something else than a Decision, for one trace. That row is an error, not a drop."""

    def __init__(self, name: str, trace_id: str, traceback_text: str) -> None:
        self.name = name
        self.trace_id = trace_id
        self.traceback_text = traceback_text
        super().__init__(f"filter {name!r} failed on trace {trace_id}:\n{traceback_text}")

    def __reduce__(self) -> tuple[type[FilterFailed], tuple[str, str, str]]:
        return type(self), (self.name, self.trace_id, self.traceback_text)
