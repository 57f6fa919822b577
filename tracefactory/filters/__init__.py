"""Filters: one Python file = one filter. What a filter file imports, and what the engine uses to run it.

A filter file holds one function, named like the file, that looks at a trace and decides::

    \"\"\"Drop reasoning that hedges more than it reasons.\"\"\"

    from tracefactory.filters import KEEP, Decision, Params, Trace, drop, trace_filter


    class HedgingParams(Params):
        max_rate: float = 0.02  # hedging words per word


    @trace_filter
    def hedging(trace: Trace, params: HedgingParams) -> Decision:
        \"\"\"Keep traces whose hedging stays under max_rate.\"\"\"
        words = trace.reasoning.lower().split()
        rate = sum(word.strip(",.") in ("wait", "hmm") for word in words) / max(1, len(words))
        return drop("hedging", f"{rate:.3f} per word") if rate > params.max_rate else KEEP

The signature is the schema of the filter's parameters in a pipeline; there is nothing to register.
`tracefactory.filters.testing.make_trace` builds traces to test a filter with.
"""

from tracefactory.core.schema import Outcome, Thinking, Trace, Verdict
from tracefactory.filters.api import (
    KEEP,
    Decision,
    FilterFailed,
    Params,
    drop,
    trace_filter,
)
from tracefactory.filters.loader import FilterSet, LoadedFilter, apply, load_filters, measure

__all__ = [
    "KEEP",
    "Decision",
    "FilterFailed",
    "FilterSet",
    "LoadedFilter",
    "Outcome",
    "Params",
    "Thinking",
    "Trace",
    "Verdict",
    "apply",
    "drop",
    "load_filters",
    "measure",
    "trace_filter",
]
