"""Prompt and completion as message lists, the reasoning inline: what prompt-completion fine-tuning reads."""

from __future__ import annotations

import pyarrow as pa

from tracefactory.core.schema import Trace
from tracefactory.publish.views import Row, require_trainable, tracking, tracking_fields, view

_MESSAGES = pa.list_(pa.struct([pa.field("role", pa.string()), pa.field("content", pa.string())]))


@view(
    name="sft",
    version="1",
    summary="`prompt` and `completion` as message lists; the reasoning is inline, between `<think>` and `</think>`.",
    schema=pa.schema([*tracking_fields(), pa.field("prompt", _MESSAGES), pa.field("completion", _MESSAGES)]),
)
def sft(trace: Trace) -> Row:
    """Return the question as the prompt, and reasoning and answer as one assistant message as the completion.

    Inline reasoning is kept by chat templates that ignore a separate reasoning field. The layout is the conversational
    prompt-completion format of TRL (https://huggingface.co/docs/trl/dataset_formats).
    """
    require_trainable(trace)
    return {
        **tracking(trace),
        "prompt": [{"role": "user", "content": trace.problem.question}],
        "completion": [{"role": "assistant", "content": trace.text}],
    }
