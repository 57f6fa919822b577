"""Parse the messages of a data set, in the format of the OpenAI protocol, with tool calls and their results."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from tracefactory.core.rows import ToolCall, Turn
from tracefactory.reading.base import json_text

ROLES = ("system", "user", "assistant", "tool")


class BadConversation(ValueError):  # noqa: N818  # an error in the data, not in the program
    """The messages are not a conversation from a question to an answer; the text has the reason."""


class Conversation(NamedTuple):
    """A conversation from a question to an answer; `turns` are those between them."""

    system: str | None
    question: str
    turns: tuple[Turn, ...]
    last: Turn


def read_conversation(value: Any) -> Conversation:
    """Parse messages: an optional system message, the user's question, any turns, and the assistant's last message.

    Args:
        value: a list of messages, or such a list as JSON text.

    Raises:
        BadConversation: for any other value.
    """
    try:
        items = json.loads(value) if isinstance(value, str) else value
    except ValueError as error:
        raise BadConversation(f"the messages are not valid JSON: {error}") from error
    if not isinstance(items, Sequence) or not items:
        raise BadConversation("there is no list of messages")
    turns = [_turn(item, place) for place, item in enumerate(items)]
    system = turns.pop(0).content if turns[0].role == "system" else None
    if not turns or turns[0].role != "user":
        raise BadConversation("the first message after an optional system message is not the user's")
    if turns[-1].role != "assistant" or turns[-1].tool_calls:
        raise BadConversation("the last message is not an answer of the assistant")
    return Conversation(system, turns[0].content, tuple(turns[1:-1]), turns[-1])


def _turn(item: Any, place: int) -> Turn:
    if not isinstance(item, Mapping) or item.get("role") not in ROLES:
        raise BadConversation(f"message {place} has none of the roles {', '.join(ROLES)}")
    text = {name: item.get(name) for name in ("content", "reasoning_content", "name", "tool_call_id")}
    for name, value in text.items():
        if value is not None and not isinstance(value, str):
            raise BadConversation(f"message {place}: {name} is not text")
    return Turn(
        role=item["role"],
        content=text["content"] or "",
        reasoning=text["reasoning_content"] or "",
        tool_calls=tuple(_call(call, place) for call in item.get("tool_calls") or ()),
        name=text["name"] or "",
        call_id=text["tool_call_id"] or "",
    )


def _call(item: Any, place: int) -> ToolCall:
    function = item.get("function") if isinstance(item, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise BadConversation(f"message {place} calls a tool without a name")
    given = function.get("arguments")
    arguments = given if isinstance(given, str) else json_text(given or {})
    return ToolCall(id=str(item.get("id") or ""), name=function["name"], arguments=arguments)
