"""One `messages` list, the reasoning in its own field: what trainers with a reasoning-aware chat template read."""

from __future__ import annotations

import pyarrow as pa

from tracefactory.core.schema import Trace
from tracefactory.publish.views import Row, require_trainable, tracking, tracking_fields, view

_MESSAGES = pa.list_(pa.struct([pa.field(name, pa.string()) for name in ("role", "content", "reasoning_content")]))


@view(
    name="chat",
    version="1",
    summary="`messages` with the reasoning in `reasoning_content`; check that your chat template renders that field.",
    schema=pa.schema([*tracking_fields(), pa.field("messages", _MESSAGES)]),
)
def chat(trace: Trace) -> Row:
    """Return question and answer as two messages; `reasoning_content` is null where there is no reasoning."""
    require_trainable(trace)
    question = {"role": "user", "content": trace.problem.question, "reasoning_content": None}
    answer = {"role": "assistant", "content": trace.answer_text, "reasoning_content": trace.reasoning or None}
    return {**tracking(trace), "messages": [question, answer]}
