"""Conversations with tool calls and their results, for agent fine-tuning."""

from __future__ import annotations

import json

from pydantic import Field

from tracefactory.core.rows import Frozen, ToolCall, Trace
from tracefactory.publish.views import (
    Row,
    Tracked,
    ViewError,
    require_trainable,
    trace_view,
    tracking,
)


class Function(Frozen):
    """The function that is called."""

    name: str = Field(description="The tool.")
    arguments: str = Field(description="Its arguments, a JSON object.")


class Call(Frozen):
    """One call of a tool."""

    id: str = Field(description="The id that the tool's result refers to.")
    type: str = Field(description="function")
    function: Function = Field(description="The function that is called.")


class ToolMessage(Frozen):
    """One message, which can have tool calls or be the result of one."""

    role: str = Field(description="system, user, assistant or tool.")
    content: str = Field(description="The text, or what a tool returned.")
    reasoning_content: str | None = Field(description="The reasoning before the text; null where there is none.")
    tool_calls: list[Call] | None = Field(description="The calls of an assistant's message; null where it makes none.")
    tool_call_id: str | None = Field(description="The call that a tool's message answers.")
    name: str | None = Field(description="The tool that a tool's message is from.")


class ToolUseRow(Tracked):
    """One trace as a conversation with tools."""

    messages: list[ToolMessage] = Field(description="The conversation, in the layout of the OpenAI protocol.")
    tools: str = Field(description="The tools that may be called, a JSON list of function schemas.")


@trace_view(
    name="tool_use",
    version="3",
    summary="`messages` with tool calls and their results, and `tools` as JSON.",
    row=ToolUseRow,
)
def tool_use(trace: Trace) -> Row:
    """Return the conversation as messages of the OpenAI protocol; keys that a message does not need are null.

    Raises:
        ViewError: for a trace that cannot be used for training, and for arguments of calls that are no JSON object:
            chat templates write them as one.
    """
    require_trainable(trace)
    for call in (call for turn in trace.messages for call in turn.tool_calls):
        _require_object(call)
    absent = dict.fromkeys(("tool_calls", "tool_call_id", "name"))
    messages = [{**absent, **turn.message(), "reasoning_content": turn.reasoning or None} for turn in trace.messages]
    tools = [
        {
            "type": "function",
            "function": {"name": one.name, "description": one.description, "parameters": json.loads(one.parameters)},
        }
        for one in trace.problem.tools
    ]
    return {**tracking(trace), "messages": messages, "tools": json.dumps(tools, ensure_ascii=False)}


def _require_object(call: ToolCall) -> None:
    """Check the arguments of a call.

    Raises:
        ViewError: when they are no JSON object.
    """
    try:
        given = json.loads(call.arguments)
    except (ValueError, RecursionError):  # models write anything, also 100,000 brackets
        given = None
    if not isinstance(given, dict):
        raise ViewError("arguments_not_an_object", f"the arguments of a call of {call.name} are no JSON object")
