"""Conversations with inline reasoning, as roles and texts: what trainers read that copy `role` and `content` alone."""

from __future__ import annotations

from pydantic import Field

from tracefactory.core.rows import Trace
from tracefactory.publish.views import (
    Message,
    Row,
    Tracked,
    ViewError,
    conversation,
    require_plain,
    require_trainable,
    trace_view,
    tracking,
)


class MessagesRow(Tracked):
    """One trace as a conversation."""

    messages: list[Message] = Field(description="User and assistant in turn; reasoning inline between think tags.")


@trace_view(
    name="messages",
    version="1",
    summary="`messages` with `role` and `content` alone; the reasoning is inline, between `<think>` and `</think>`.",
    row=MessagesRow,
)
def messages(trace: Trace) -> Row:
    """Return the conversation in the layout of LLaMA-Factory, open-instruct and verl.

    Raises:
        ViewError: for a trace that cannot be used for training, that calls tools, or in which user and assistant do not
            take turns: LLaMA-Factory skips such a row with a line in its log.
    """
    require_trainable(trace)
    require_plain(trace)
    made = conversation(trace)
    if any(message["role"] != ("user", "assistant")[number % 2] for number, message in enumerate(made)):
        raise ViewError("not_in_turn", "user and assistant do not take turns")
    return {**tracking(trace), "messages": made}
