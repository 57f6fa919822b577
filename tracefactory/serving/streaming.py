"""Read a streamed chat completion into the form of one that is not streamed.

A stream shows that a model is still writing: a long completion is not cut by a time-out, and a dead request is noticed
after `stall_s` without a token.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import orjson

_TEXTS = ("content", "reasoning_content", "reasoning", "refusal")


async def read_stream(chunks: AsyncIterator[bytes], token_came: Callable[[], None]) -> dict[str, Any]:
    """Return a streamed chat completion as one JSON object, in the form of one that is not streamed.

    Args:
        chunks: the body of the response: server-sent events.
        token_came: called for every event.

    Raises:
        ValueError: when an event is no JSON.
    """
    fields: dict[str, Any] = {}
    texts: dict[str, list[str]] = {}
    logprobs: list[Any] = []
    finish_reason: str | None = None
    async for line in _lines(chunks):
        if line == b"[DONE]":
            break
        chunk = orjson.loads(line)
        fields |= {name: value for name, value in chunk.items() if value is not None and name != "choices"}
        for choice in chunk.get("choices") or ():
            delta = choice.get("delta") or {}
            for name in _TEXTS:
                if delta.get(name) is not None:
                    texts.setdefault(name, []).append(delta[name])
            logprobs += (choice.get("logprobs") or {}).get("content") or ()
            finish_reason = choice.get("finish_reason") or finish_reason
        token_came()
    message = {"role": "assistant", **{name: "".join(parts) for name, parts in texts.items()}}
    scored = {"content": logprobs} if logprobs else None
    choice = {"index": 0, "message": message, "finish_reason": finish_reason, "logprobs": scored}
    return {**fields, "choices": [choice]}


async def _lines(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Yield the data of server-sent events; comments, which keep connections alive, are no sign of a token."""
    rest = b""
    async for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                yield line[5:].strip()
    if rest.startswith(b"data:"):
        yield rest[5:].strip()
