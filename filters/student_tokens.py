"""Keep traces whose length in the student's own tokens fits its context and its training."""

from tracefactory.filters import Rules, StudentBand, band, column_filter


class StudentTokensParams(StudentBand):
    """`min` and `max` bound the supervised tokens (reasoning, answer, end of turn) of the trace under `student`."""


@column_filter
def student_tokens(params: StudentTokensParams) -> Rules:
    """Keep traces whose supervised length in the student's tokens is within the bounds."""
    yield from band(f"{params.student}/tokens", params, below="too_short", above="too_long", unit="tokens")
