"""Drop problems and traces in whose texts somebody spelled a control token, such as <|im_end|>.

Servers and trainers make the real token of it: it ends the turn in the middle of a text, or begins one that nobody
wrote. `publish:` drops such traces too; here they go before anything is paid to measure, prune or sample them.
"""

from functools import lru_cache

from pydantic import Field

from tracefactory.filters import KEEP, Decision, Params, Problem, Trace, drop, trace_filter
from tracefactory.text.control_tokens import RowMarks


class ControlTokensParams(Params):
    """The marks of common chat templates count without being named."""

    also: tuple[str, ...] = Field(
        default=(),
        description="Further control tokens, such as those of your student's tokenizer alone; with `student:`, "
        "`publish: dataset` reads these from the tokenizer.",
    )


_marks = lru_cache(maxsize=8)(RowMarks)


@trace_filter
def control_tokens(row: Problem | Trace, params: ControlTokensParams) -> Decision:
    """Keep rows whose question, tools, turns, reasoning and answer spell no control token of a chat template."""
    found = _marks(params.also).find(row)
    return KEEP if found is None else drop("control_token_inside", f"the {found[0]} contains {found[1]}")
