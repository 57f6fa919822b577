"""Keep traces that are neither trivial nor alien to the student: a band of mean surprisal."""

from tracefactory.filters import Rules, StudentBand, band, column_filter


class StudentSurpriseParams(StudentBand):
    """`min` and `max` bound the mean of -ln p over the trace's tokens, in nats per token, under `student`."""


@column_filter
def student_surprise(params: StudentSurpriseParams) -> Rules:
    """Keep traces whose mean surprisal under the student lies in the band."""
    name = f"{params.student}/mean_surprisal"
    yield from band(name, params, below="too_expected", above="too_surprising", unit="nats per token")
