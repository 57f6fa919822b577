"""Keep rows whose value of any column lies in a band: a measure, a count of tokens, a cost."""

from pydantic import Field

from tracefactory.filters import Band, Rules, column_filter
from tracefactory.filters import band as within


class BandParams(Band):
    """`min` and `max` bound the values of one column."""

    column: str = Field(
        min_length=1, description="The column: completion_tokens, cost, or a measure such as student/mean_surprisal."
    )


@column_filter
def band(params: BandParams) -> Rules:
    """Keep rows whose value lies in the band; a row without a value is dropped as `not_measured`."""
    yield from within(params.column, params, below="below_band", above="above_band")
