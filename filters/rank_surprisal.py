"""Keep traces that teach the student something it can follow: a band of the rank-surprisal ratio."""

from tracefactory.filters import KEEP, Decision, Trace, drop, trace_filter
from tracefactory.students.band import StudentBand


class RankSurprisalParams(StudentBand):
    """`min` and `max` bound the rank-surprisal ratio of the trace under `student`; lower is better."""

    def reads_measures(self) -> tuple[str, ...]:
        return (f"{self.student}/rank_surprisal",)


@trace_filter
def rank_surprisal(trace: Trace, params: RankSurprisalParams) -> Decision:
    """Keep traces whose rank-surprisal ratio (arXiv 2601.14249) under the student lies in the band."""
    (name,) = params.reads_measures()
    value = trace.measures.get(name)
    if value is None:
        return drop("not_measured", f"the trace has no measure {name}")
    if params.below(value):
        return drop("rank_surprisal_too_low", f"{value:.3f}, at least {params.min:g}")
    if params.above(value):
        return drop("rank_surprisal_too_high", f"{value:.3f}, at most {params.max:g}")
    return KEEP
