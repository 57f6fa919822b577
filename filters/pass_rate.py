"""Keep traces of problems that are neither hopeless nor trivial for a model: a band of its pass rate."""

from tracefactory.filters import KEEP, Decision, Trace, drop, trace_filter
from tracefactory.students.band import Band


class PassRateParams(Band):
    """`min` and `max` bound the share of correct samples on the trace's problem.

    `model` is whose samples: a teacher or the student, by its name in the pipeline; None is the trace's own teacher.
    """

    model: str | None = None

    def reads_measures(self) -> tuple[str, ...]:
        return (f"{self.model or '*'}/pass_rate",)


@trace_filter
def pass_rate(trace: Trace, params: PassRateParams) -> Decision:
    """Keep traces of problems whose pass rate lies in the band."""
    name = f"{params.model or trace.teacher}/pass_rate"
    rate = trace.measures.get(name)
    if rate is None:
        return drop("not_measured", f"the trace has no measure {name}")
    if params.below(rate):
        return drop("too_hard", f"pass rate {rate:.3f}, at least {params.min:g}")
    if params.above(rate):
        return drop("too_easy", f"pass rate {rate:.3f}, at most {params.max:g}")
    return KEEP
