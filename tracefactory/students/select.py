"""Keep the best few traces of every problem, by any measure."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from tracefactory.core.schema import Trace


@dataclass(frozen=True)
class NotSelected:
    """A trace that was not selected; `reason` is a stable identifier, `detail` is for a person."""

    trace: Trace
    reason: Literal["not_measured", "not_among_best"]
    detail: str


@dataclass(frozen=True)
class Selection:
    """Every trace that went in, once: the selected ones in the order given, and the others with their reason."""

    kept: tuple[Trace, ...]
    dropped: tuple[NotSelected, ...]


def best_per_problem(
    traces: Sequence[Trace], value: Callable[[Trace], float | None], count: int, best: Literal["lowest", "highest"]
) -> Selection:
    """Select the `count` best traces of each problem by `value`.

    Ties go to the smaller trace id, so that the order of the rows does not matter. A trace whose value is None or NaN
    is not measured, and never selected.

    Raises:
        ValueError: for a count below 1.
    """
    if count < 1:
        raise ValueError("select at least one trace per problem")
    sign = 1.0 if best == "lowest" else -1.0
    measured: dict[str, list[tuple[float, str]]] = defaultdict(list)
    values = [value(trace) for trace in traces]
    for trace, found in zip(traces, values, strict=True):
        if found is not None and not math.isnan(found):
            measured[trace.problem_id].append((sign * found, trace.id))
    places = {
        (problem, trace_id): place
        for problem, entries in measured.items()
        for place, (_, trace_id) in enumerate(sorted(entries), start=1)
    }
    kept, dropped = [], []
    for trace, found in zip(traces, values, strict=True):
        place = places.get((trace.problem_id, trace.id))
        if place is None:
            dropped.append(NotSelected(trace, "not_measured", "the measure to select by is missing"))
        elif place > count:
            among = len(measured[trace.problem_id])
            dropped.append(NotSelected(trace, "not_among_best", f"{found:g} is place {place} of {among}"))
        else:
            kept.append(trace)
    return Selection(tuple(kept), tuple(dropped))


def by_measure(name: str) -> Callable[[Trace], float | None]:
    """Return what reads the measure `name` of a trace."""
    return lambda trace: trace.measures.get(name)
