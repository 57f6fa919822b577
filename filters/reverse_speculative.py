"""Keep traces that the student would have accepted token by token, by the rule of reverse speculative decoding."""

from pydantic import Field

from tracefactory.filters import KEEP, Decision, Params, Trace, drop, trace_filter
from tracefactory.students.measures import acceptance_name


class ReverseSpeculativeParams(Params):
    """A token is accepted at probability `p` or more and among the `top_k` likeliest under `student`.

    `min_accepted` is the share of tokens that must be. The method's own filter discards a run in which more than half
    of the tokens were not (arXiv 2509.22230). The pair (`p`, `top_k`) must have been measured.
    """

    student: str = Field(min_length=1)
    p: float = Field(default=0.01, gt=0, lt=1)
    top_k: int = Field(default=20, ge=1)
    min_accepted: float = Field(default=0.5, ge=0, le=1)

    def reads_measures(self) -> tuple[str, ...]:
        return (f"{self.student}/{acceptance_name(self.p, self.top_k)}",)


@trace_filter
def reverse_speculative(trace: Trace, params: ReverseSpeculativeParams) -> Decision:
    """Keep traces of which the student accepts a share of at least min_accepted."""
    (name,) = params.reads_measures()
    accepted = trace.measures.get(name)
    if accepted is None:
        return drop("not_measured", f"the trace has no measure {name}")
    if accepted < params.min_accepted:
        return drop("too_few_accepted", f"{accepted:.3f} of the tokens, at least {params.min_accepted:g}")
    return KEEP
