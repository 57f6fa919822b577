"""Drop traces that state false arithmetic, such as "12 - 1 = 13", whatever their answer.

A right answer does not say that the steps to it are right: of the long traces of sums whose answers were verified, 15%
of those of SmolLM2-135M and 27% of those of Qwen2.5-Coder-0.5B state a false sum (`pipelines/mix_distill.yaml`,
`pipelines/sum_styles.yaml`). What counts as an equation is in `tracefactory.maths.arithmetic`: numbers on both sides,
so algebra, units and words are not looked at, and a trace without equations is kept.
"""

from pydantic import Field

from tracefactory.filters import KEEP, Decision, Params, Trace, drop, trace_filter
from tracefactory.maths.arithmetic import false_equations as false_in


class FalseEquationsParams(Params):
    """How many false equations a trace may state: one that tries and corrects itself states some."""

    max_false: int = Field(default=0, ge=0, description="The most false equations of a trace that is kept.")


@trace_filter
def false_equations(trace: Trace, params: FalseEquationsParams) -> Decision:
    """Keep traces whose reasoning and answer together state at most so many false equations between numbers."""
    found = [*false_in(trace.reasoning), *false_in(trace.answer_text)]
    if len(found) > params.max_false:
        return drop("false_equation", found[0] if len(found) == 1 else f"{found[0]}, and {len(found) - 1} more")
    return KEEP
