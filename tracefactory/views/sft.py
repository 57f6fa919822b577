"""Prompts and completions as message lists with inline reasoning, for prompt-completion fine-tuning."""

from __future__ import annotations

from pydantic import Field

from tracefactory.core.rows import Trace
from tracefactory.publish.views import (
    Message,
    Row,
    Tracked,
    conversation,
    require_plain,
    require_trainable,
    trace_view,
    tracking,
)


class SftRow(Tracked):
    """One trace as prompt and completion."""

    prompt: list[Message] = Field(description="The question, and the turns before the last one, as messages.")
    completion: list[Message] = Field(description="The last turn: reasoning between think tags, then the answer.")


@trace_view(
    name="sft",
    version="2",
    summary="`prompt` and `completion` as message lists; the reasoning is inline, between `<think>` and `</think>`.",
    row=SftRow,
)
def sft(trace: Trace) -> Row:
    """Return everything before the last turn as the prompt, and reasoning and answer as the completion.

    Inline reasoning is kept by chat templates that ignore a separate reasoning field. The layout is the conversational
    prompt-completion format of TRL (https://huggingface.co/docs/trl/dataset_formats).
    """
    require_trainable(trace)
    require_plain(trace)
    *prompt, completion = conversation(trace)
    return {**tracking(trace), "prompt": prompt, "completion": [completion]}
