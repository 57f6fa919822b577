"""Keep traces that the student would have accepted token by token, by the rule of reverse speculative decoding."""

from pydantic import Field

from tracefactory.filters import Params, Rules, column, column_filter, drop_if
from tracefactory.students.names import acceptance_name


class ReverseSpeculativeParams(Params):
    """A token is accepted at probability `p` or more and among the `top_k` likeliest under `student`.

    The method's own filter discards a run in which more than half of the tokens were not (arXiv 2509.22230). The pair
    (`p`, `top_k`) must have been measured.
    """

    student: str = Field(min_length=1, description="The student, by its name in the pipeline.")
    p: float = Field(default=0.01, gt=0, lt=1, description="Smallest probability of an accepted token.")
    top_k: int = Field(default=20, ge=1, description="Largest rank of an accepted token.")
    min_accepted: float = Field(default=0.5, ge=0, le=1, description="Share of the tokens that must be accepted.")


@column_filter
def reverse_speculative(params: ReverseSpeculativeParams) -> Rules:
    """Keep traces of which the student accepts a share of at least min_accepted."""
    name = f"{params.student}/{acceptance_name(params.p, params.top_k)}"
    accepted = column(name)
    yield drop_if(accepted.is_null(), "not_measured", f"the row has no value of {name}")
    detail = f"{{}} of the tokens, at least {params.min_accepted:g}"
    yield drop_if(accepted < params.min_accepted, "too_few_accepted", detail, accepted.round(4))
