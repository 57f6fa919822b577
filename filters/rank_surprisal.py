"""Keep traces that teach the student something it can follow: a band of the rank-surprisal ratio."""

from tracefactory.filters import Rules, StudentBand, band, column_filter


class RankSurprisalParams(StudentBand):
    """`min` and `max` bound the rank-surprisal ratio of the trace under `student`; lower is better."""


@column_filter
def rank_surprisal(params: RankSurprisalParams) -> Rules:
    """Keep traces whose rank-surprisal ratio (arXiv 2601.14249) under the student lies in the band."""
    name = f"{params.student}/rank_surprisal"
    yield from band(name, params, below="rank_surprisal_too_low", above="rank_surprisal_too_high")
