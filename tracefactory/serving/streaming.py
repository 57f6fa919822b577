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
    answer = _Answer()
    async for line in _lines(chunks):
        if line == b"[DONE]":
            break
        answer.add(orjson.loads(line))
        token_came()
    return answer.whole()


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


class _Answer:
    """Puts the chunks of a stream together."""

    def __init__(self) -> None:
        self.fields: dict[str, Any] = {}
        self.texts: dict[str, list[str]] = {}
        self.logprobs: list[Any] = []
        self.finish_reason: str | None = None

    def add(self, chunk: Any) -> None:
        self.fields |= {name: value for name, value in chunk.items() if value is not None and name != "choices"}
        for choice in chunk.get("choices") or ():
            delta = choice.get("delta") or {}
            for name in _TEXTS:
                if delta.get(name) is not None:
                    self.texts.setdefault(name, []).append(delta[name])
            self.logprobs += (choice.get("logprobs") or {}).get("content") or ()
            self.finish_reason = choice.get("finish_reason") or self.finish_reason

    def whole(self) -> dict[str, Any]:
        message = {"role": "assistant", **{name: "".join(parts) for name, parts in self.texts.items()}}
        logprobs = {"content": self.logprobs} if self.logprobs else None
        choice = {"index": 0, "message": message, "finish_reason": self.finish_reason, "logprobs": logprobs}
        return {**self.fields, "choices": [choice]}
