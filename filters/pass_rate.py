"""Keep traces of problems that are neither hopeless nor trivial for a model: a band of its pass rate."""

from pydantic import Field

from tracefactory.filters import Band, Rules, band, column_filter


class PassRateParams(Band):
    """`min` and `max` bound the share of right samples of the trace's problem."""

    model: str | None = Field(
        default=None,
        description="Whose samples: a model by its name in the pipeline; by default the trace's own teacher.",
    )


@column_filter
def pass_rate(params: PassRateParams) -> Rules:
    """Keep traces of problems whose pass rate lies in the band."""
    name = f"{params.model}/pass_rate" if params.model else "pass_rate"
    yield from band(name, params, below="too_hard", above="too_easy")
