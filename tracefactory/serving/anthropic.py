"""Anthropic's messages protocol (https://platform.claude.com/docs/en/api/messages), mapped to the OpenAI protocol."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tracefactory.core.wire import Wire

VERSION = "2023-06-01"
DEFAULT_TOKENS = 4096
"""`max_tokens` where a request has none: the protocol demands it."""

_FINISHED = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "refusal": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool_calls",
}


def headers_of(secret: str) -> dict[str, str]:
    """Return the headers of a request: the version of the protocol, and the key if there is one."""
    return {"anthropic-version": VERSION, **({"x-api-key": secret} if secret else {})}


def messages_body(body: Mapping[str, Any]) -> dict[str, Any]:
    """Return the body of a messages request for the body of a chat request.

    System messages become `system`, `stop` becomes `stop_sequences`. There is no seed in the protocol: it is left out,
    and tells samples apart only in the request's key.
    """
    mapped = {name: value for name, value in body.items() if name not in {"messages", "seed", "stop"}}
    system = [message["content"] for message in body["messages"] if message["role"] == "system"]
    mapped["messages"] = [dict(message) for message in body["messages"] if message["role"] != "system"]
    mapped.setdefault("max_tokens", DEFAULT_TOKENS)
    if system:
        mapped["system"] = "\n\n".join(system)
    if stop := body.get("stop"):
        mapped["stop_sequences"] = [stop] if isinstance(stop, str) else list(stop)
    return mapped


def chat_answer(message: Any) -> dict[str, Any]:
    """Return a message of the model as a chat completion; thinking becomes `reasoning_content`."""
    blocks, usage, reason = message["content"], message.get("usage") or {}, message["stop_reason"]
    text = "".join(block["text"] for block in blocks if block["type"] == "text")
    thinking = [block["thinking"] for block in blocks if block["type"] == "thinking"]
    cached = usage.get("cache_read_input_tokens") or 0
    written: dict[str, Any] = {"role": "assistant", "content": text}
    if thinking:
        written["reasoning_content"] = "\n\n".join(thinking)
    if reason == "refusal":
        written |= {"content": "", "refusal": text or "the model refused the request"}
    return {
        "model": message.get("model"),
        "choices": [{"index": 0, "message": written, "finish_reason": _FINISHED.get(reason, reason)}],
        "usage": {
            "prompt_tokens": usage.get("input_tokens", 0) + (usage.get("cache_creation_input_tokens") or 0) + cached,
            "completion_tokens": usage.get("output_tokens", 0),
            "prompt_tokens_details": {"cached_tokens": cached},
        },
    }


MESSAGES = Wire(
    path="/messages", headers=lambda secret: {**headers_of(secret), "Authorization": None}, answer=chat_answer
)
"""The messages protocol."""
