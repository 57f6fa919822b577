"""Keep traces whose length in the student's own tokens fits its context and its training."""

from tracefactory.filters import KEEP, Decision, Trace, drop, trace_filter
from tracefactory.students.band import StudentBand


class StudentTokensParams(StudentBand):
    """`min` and `max` bound the supervised tokens (reasoning, answer, end of turn) of the trace under `student`."""

    def reads_measures(self) -> tuple[str, ...]:
        return (f"{self.student}/tokens",)


@trace_filter
def student_tokens(trace: Trace, params: StudentTokensParams) -> Decision:
    """Keep traces whose supervised length in the student's tokens is within the bounds."""
    (name,) = params.reads_measures()
    tokens = trace.measures.get(name)
    if tokens is None:
        return drop("not_measured", f"the trace has no measure {name}")
    if params.below(tokens):
        return drop("too_short", f"{tokens:g} tokens, at least {params.min:g}")
    if params.above(tokens):
        return drop("too_long", f"{tokens:g} tokens, at most {params.max:g}")
    return KEEP
