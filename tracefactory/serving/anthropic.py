"""Anthropic's messages protocol (https://platform.claude.com/docs/en/api/messages), mapped to the OpenAI protocol."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tracefactory.core.completion import token_count, tokens_together
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
    text, thinking = _texts(message["content"])
    written: dict[str, Any] = {"role": "assistant", "content": text}
    if thinking:
        written["reasoning_content"] = "\n\n".join(thinking)
    reason = message.get("stop_reason", "")
    if reason == "refusal":
        written |= {"content": "", "refusal": text or "the model refused the request"}
    finished = _FINISHED.get(reason, reason) if isinstance(reason, str) else reason
    return {
        "model": message.get("model"),
        "choices": [{"index": 0, "message": written, "finish_reason": finished}],
        "usage": _usage(message.get("usage")),
    }


def _texts(content: Any) -> tuple[str, list[str]]:
    """Return the text of a message and its thinking; blocks of other kinds, or of another form, are left out.

    Raises:
        TypeError: when there are blocks, and no text in any of them.
    """
    if isinstance(content, str):
        return content, []
    blocks = [block for block in content or () if isinstance(block, dict)]
    read = {
        kind: [block[kind] for block in blocks if block.get("type") == kind and isinstance(block.get(kind), str)]
        for kind in ("text", "thinking")
    }
    if not any(read.values()) and any(one.get("type") in read for one in blocks):
        raise TypeError("the blocks have no text")
    return "".join(read["text"]), read["thinking"]


def _usage(usage: Any) -> dict[str, Any]:
    """Return the counts of tokens; where one of those that make the prompt cannot be read, the prompt is unknown."""
    usage = usage if isinstance(usage, dict) else {}
    cached = usage.get("cache_read_input_tokens")
    prompt = tokens_together(usage.get("input_tokens", -1), usage.get("cache_creation_input_tokens"), cached)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": token_count(usage.get("output_tokens")),
        "prompt_tokens_details": {"cached_tokens": token_count(cached) if prompt else 0},
    }


MESSAGES = Wire(
    path="/messages", headers=lambda secret: {**headers_of(secret), "Authorization": None}, answer=chat_answer
)
"""The messages protocol."""
