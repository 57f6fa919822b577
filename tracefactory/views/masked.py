"""Pruned traces as raw texts with the character ranges that carry no loss."""

from __future__ import annotations

from pydantic import Field

from tracefactory.core.rows import Frozen, Trace
from tracefactory.pruning import Masked, restored
from tracefactory.pruning import masked as masked_form
from tracefactory.publish.views import Message, Row, Tracked, ViewError, require_trainable, trace_view, tracking


class Span(Frozen):
    """A range of characters, the end not included."""

    start: int = Field(description="The first character.")
    end: int = Field(description="The character after the last one.")


class MaskedRow(Tracked):
    """One trace with its raw reasoning and the ranges that carry no loss."""

    prompt: list[Message] = Field(description="The question as a message.")
    completion: list[Message] = Field(description="The raw reasoning between think tags, then the answer.")
    masked: list[Span] = Field(description="Character ranges of the completion that pruning cut.")


@trace_view(
    name="masked",
    version="1",
    summary="`prompt` and `completion` as in `sft`, with the full reasoning of the raw trace; `masked` are the "
    "[start, end) character ranges of the completion that pruning cut and that carry no loss.",
    row=MaskedRow,
    partial=True,
)
def masked(trace: Trace) -> Row:
    """Return the raw reasoning with the answer of the pruned trace. A trace that was not pruned has no masked ranges.

    Segment-level selective fine-tuning reports better results with loss on the kept parts in their full context than
    with the shortened text. `tracefactory.pruning.loss_mask` converts the ranges to a mask over tokens.

    Raises:
        ViewError: for a trace that cannot be used for training, or whose pruned form has added text.
    """
    require_trainable(trace)
    found = restored(trace)
    form = Masked(text=trace.text, spans=())
    if found is not None:
        item, result = found
        if result.added:
            raise ViewError("not_a_selection", "the pruned trace has text that the raw trace does not have")
        form = masked_form(item, result)
    return {
        **tracking(trace),
        "prompt": [{"role": "user", "content": trace.problem.question}],
        "completion": [{"role": "assistant", "content": form.text}],
        "masked": [{"start": start, "end": end} for start, end in form.spans],
    }
