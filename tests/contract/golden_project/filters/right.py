"""Keep what was verified as right; a filter on columns."""

from tracefactory.filters import Params, Rules, column, column_filter, drop_if


class RightParams(Params):
    """Nothing to choose."""


@column_filter
def right(params: RightParams) -> Rules:
    """Keep traces whose verdict is correct."""
    yield drop_if(column("verdict").struct.field("outcome") != "correct", "not_right")
