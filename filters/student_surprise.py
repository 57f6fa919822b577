"""Keep traces that are neither trivial nor alien to the student: a band of mean surprisal."""

from tracefactory.filters import KEEP, Decision, Trace, drop, trace_filter
from tracefactory.students.band import StudentBand


class StudentSurpriseParams(StudentBand):
    """`min` and `max` bound the mean of -ln p over the trace's tokens, in nats per token, under `student`."""

    def reads_measures(self) -> tuple[str, ...]:
        return (f"{self.student}/mean_surprisal",)


@trace_filter
def student_surprise(trace: Trace, params: StudentSurpriseParams) -> Decision:
    """Keep traces whose mean surprisal under the student lies in the band."""
    (name,) = params.reads_measures()
    value = trace.measures.get(name)
    if value is None:
        return drop("not_measured", f"the trace has no measure {name}")
    if params.below(value):
        return drop("too_expected", f"{value:.3f} nats per token, at least {params.min:g}")
    if params.above(value):
        return drop("too_surprising", f"{value:.3f} nats per token, at most {params.max:g}")
    return KEEP
