"""Conversations with the reasoning in `reasoning_content`, for trainers with a reasoning-aware chat template."""

from __future__ import annotations

from pydantic import Field

from tracefactory.core.rows import Frozen, Trace
from tracefactory.publish.views import Row, Tracked, require_plain, require_trainable, trace_view, tracking


class ReasonedMessage(Frozen):
    """One message with its reasoning in a separate field."""

    role: str = Field(description="system, user or assistant.")
    content: str = Field(description="The text, without the reasoning.")
    reasoning_content: str | None = Field(description="The reasoning before the text; null where there is none.")


class ChatRow(Tracked):
    """One trace as a conversation."""

    messages: list[ReasonedMessage] = Field(description="The conversation from the question to the answer.")


@trace_view(
    name="chat",
    version="2",
    summary="`messages` with the reasoning in `reasoning_content`; only for a chat template that renders that field.",
    row=ChatRow,
)
def chat(trace: Trace) -> Row:
    """Return the conversation; `reasoning_content` is null where there is no reasoning.

    A chat template that does not know the field drops the reasoning without an error; `messages` has it inline.
    """
    require_trainable(trace)
    require_plain(trace)
    messages = [
        {"role": turn.role, "content": turn.content, "reasoning_content": turn.reasoning or None}
        for turn in trace.messages
    ]
    return {**tracking(trace), "messages": messages}
