"""Pruned traces in their full context: the raw reasoning, and which ranges of its characters carry loss.

The column is not named `messages`, `prompt` or `text`: a trainer that does not know the ranges then finds nothing to
train on and fails, where it would have trained on what was cut.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pydantic import Field

from tracefactory.core.rows import Frozen, Trace
from tracefactory.pruning import Masked, restored
from tracefactory.pruning import masked as masked_form
from tracefactory.publish.views import (
    Row,
    Tracked,
    ViewError,
    conversation,
    require_plain,
    require_trainable,
    trace_view,
    tracking,
)


class Detail(Frozen):
    """A range of characters with or without loss, in the layout of axolotl."""

    begin_offset: int = Field(description="The first character.")
    end_offset: int = Field(description="The last character, which is included.")
    train: bool = Field(description="Whether the range carries loss.")


class MaskedMessage(Frozen):
    """One message and the parts of it that carry loss."""

    role: str = Field(description="system, user or assistant.")
    content: str = Field(description="The text.")
    train_detail: list[Detail] | None = Field(
        description="Ranges that cover the text; null where the role decides, which is the assistant's."
    )


class MaskedRow(Tracked):
    """One trace with its raw reasoning and the ranges that carry no loss."""

    masked_messages: list[MaskedMessage] = Field(
        description="The conversation; the last message is the raw reasoning between think tags, then the answer."
    )


@trace_view(
    name="masked",
    version="2",
    summary="`masked_messages`: the conversation with the full reasoning of the raw trace; `train_detail` has the "
    "ranges that pruning kept (`train: true`) and cut (`train: false`, no loss), in axolotl's layout.",
    row=MaskedRow,
    partial=True,
)
def masked(trace: Trace) -> Row:
    """Return the raw reasoning with the answer of the pruned trace; where nothing was pruned, everything carries loss.

    Segment-level selective fine-tuning reports better results with loss on the kept parts in their full context than
    with the shortened text. The layout is https://docs.axolotl.ai/docs/dataset-formats/conversation.html.

    Raises:
        ViewError: for a trace that cannot be used for training, or whose pruned form has added text.
    """
    require_trainable(trace)
    require_plain(trace)
    found = restored(trace)
    form = Masked(text=trace.text, spans=())
    if found is not None:
        item, result = found
        if result.added:
            raise ViewError("not_a_selection", "the pruned trace has text that the raw trace does not have")
        require_trainable(trace.model_copy(update={"reasoning": item.trace.reasoning}))
        form = masked_form(item, result)
    before = [{**message, "train_detail": None} for message in conversation(trace)[:-1]]
    last = {"role": "assistant", "content": form.text, "train_detail": list(_details(len(form.text), form.spans))}
    return {**tracking(trace), "masked_messages": [*before, last]}


def _details(length: int, spans: Sequence[tuple[int, int]]) -> Iterator[Row]:
    """Yield ranges that cover a text of this length; those of `spans` carry no loss."""
    done = 0
    for start, end in (*spans, (length, length)):
        if done < start:
            yield {"begin_offset": done, "end_offset": start - 1, "train": True}
        if start < end:
            yield {"begin_offset": start, "end_offset": end - 1, "train": False}
        done = end
