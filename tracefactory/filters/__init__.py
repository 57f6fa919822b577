'''Filters: one Python file is one filter. This package has the imports of filter files, and runs the filters.

A filter file contains one function with the name of the file, which decides about a trace::

    """Drop reasoning that hedges more than it reasons."""

    from tracefactory.filters import KEEP, Decision, Params, Trace, drop, trace_filter


    class HedgingParams(Params):
        max_rate: float = 0.02  # hedging words per word


    @trace_filter
    def hedging(trace: Trace, params: HedgingParams) -> Decision:
        """Keep traces whose hedging stays under max_rate."""
        words = trace.reasoning.lower().split()
        rate = sum(word.strip(",.") in ("wait", "hmm") for word in words) / max(1, len(words))
        return drop("hedging", f"{rate:.3f} per word") if rate > params.max_rate else KEEP

A filter that needs only columns (lengths, verdicts, measures) yields rules, which are evaluated for all rows together::

    @column_filter
    def long_enough(params: LongEnoughParams) -> Rules:
        """Keep traces of at least min_tokens tokens."""
        yield drop_if(column("completion_tokens") < params.min_tokens, "too_short")

The signature is the schema of the filter's parameters in a pipeline; filters need no registration. A filter may use the
row, its parameters and the files that it declares (`files=`), but no other file, clock, randomness or network.
`tracefactory.testing` builds traces for tests of filters.
'''

from tracefactory.core.decisions import KEEP, Decision, drop
from tracefactory.core.rows import Outcome, Problem, Thinking, Trace, Verdict
from tracefactory.filters.api import (
    Band,
    Files,
    FilterFailed,
    Params,
    Rule,
    Rules,
    StudentBand,
    band,
    column,
    column_filter,
    drop_if,
    trace_filter,
)
from tracefactory.filters.loader import FilterSet, LoadedFilter, apply, load_filters, read_filters

__all__ = [
    "KEEP",
    "Band",
    "Decision",
    "Files",
    "FilterFailed",
    "FilterSet",
    "LoadedFilter",
    "Outcome",
    "Params",
    "Problem",
    "Rule",
    "Rules",
    "StudentBand",
    "Thinking",
    "Trace",
    "Verdict",
    "apply",
    "band",
    "column",
    "column_filter",
    "drop",
    "drop_if",
    "load_filters",
    "read_filters",
    "trace_filter",
]
