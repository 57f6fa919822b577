"""Rejection sampling: keep the traces whose answer was verified as wanted."""

import polars as pl
from pydantic import Field

from tracefactory.filters import Outcome, Params, Rules, column, column_filter, drop_if


class VerdictParams(Params):
    """Which outcomes stay."""

    keep: tuple[Outcome, ...] = Field(
        default=(Outcome.CORRECT,),
        min_length=1,
        description="The outcomes that stay, out of correct, incorrect, unverifiable and verifier_error.",
    )


@column_filter
def verdict(params: VerdictParams) -> Rules:
    """Keep traces whose verdict is one of `keep`; a trace that no stage verified is dropped as such."""
    found = column("verdict").struct
    yield drop_if(column("verdict").is_null(), "not_verified")
    stated = pl.format("stated {}", found.field("extracted").fill_null("no answer"))
    for outcome in Outcome:
        if outcome not in params.keep:
            detail = pl.coalesce(found.field("detail"), stated)
            yield drop_if(found.field("outcome") == outcome.value, outcome.value, "{}", detail)
