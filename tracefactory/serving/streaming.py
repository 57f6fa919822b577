"""Read a streamed chat completion into the form of one that is not streamed.

A stream shows that a model is still writing: a long completion is not cut by a time-out, and a dead request is noticed
after `stall_s` without a token.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import orjson

from tracefactory.serving import completions

_TEXTS = ("content", "reasoning_content", "reasoning", "refusal")


async def read_stream(chunks: AsyncIterator[bytes], token_came: Callable[[], None]) -> dict[str, Any]:
    """Return a streamed chat completion as one JSON object, in the form of one that is not streamed.

    Args:
        chunks: the body of the response: server-sent events.
        token_came: called for every event.

    Raises:
        ValueError: when an event is no JSON, or JSON of another form.
    """
    read = _Pieces()
    async for line in _lines(chunks):
        if line == b"[DONE]":
            break
        try:
            read.add(orjson.loads(line))
        except (TypeError, AttributeError, KeyError) as error:
            raise ValueError("an event of the stream has an unexpected form") from error
        token_came()
    return read.answer()


class _Pieces:
    """What the events of one stream have brought."""

    def __init__(self) -> None:
        self._fields: dict[str, Any] = {}
        self._texts: dict[str, list[Any]] = {}
        self._logprobs: list[Any] = []
        self._finish_reason: Any = None

    def add(self, chunk: Any) -> None:
        """Take one event."""
        self._fields |= {name: value for name, value in chunk.items() if value is not None and name != "choices"}
        for choice in chunk.get("choices") or ():
            delta = choice.get("delta") or {}
            for name in _TEXTS:
                if delta.get(name) is not None:
                    self._texts.setdefault(name, []).append(delta[name])
            scored = choice.get("logprobs")
            content = scored.get("content") if isinstance(scored, dict) else scored
            # What is no list is no log-probability; with it, those of the other tokens belong to no text.
            self._logprobs += content if isinstance(content, list) else [] if content is None else [content]
            self._finish_reason = choice.get("finish_reason") or self._finish_reason

    def answer(self) -> dict[str, Any]:
        """Return the whole answer. Texts with a piece that is no string stay lists, which their reader judges."""
        message: dict[str, Any] = {"role": "assistant"}
        for name, pieces in self._texts.items():
            if not all(isinstance(one, str | list | dict) for one in pieces):
                raise ValueError("a piece of the text is no text")
            message[name] = "".join(pieces) if all(isinstance(one, str) for one in pieces) else _parts(pieces)
        scored = {"content": self._logprobs} if self._logprobs else None
        choice = {"index": 0, "message": message, "finish_reason": self._finish_reason, "logprobs": scored}
        return {**self._fields, "choices": [choice]}


def _parts(pieces: list[Any]) -> list[Any]:
    """Return the parts in the pieces of a text that was sent as lists of parts, as some servers send them."""
    return [part for piece in pieces for part in (piece if isinstance(piece, list) else [piece])]


async def _lines(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Yield the data of server-sent events; comments, which keep connections alive, are no sign of a token."""
    async for line in lines_of(chunks):
        if line.startswith(b"data:"):
            yield line[5:].strip()


async def lines_of(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Yield the lines of a body without their ends, in linear time however long a line is.

    Args:
        chunks: the body.

    Raises:
        AttemptFailed: for a line of more than `completions.MOST_BYTES`.
    """
    rest, size = list[bytes](), 0
    async for chunk in chunks:
        first, *others = chunk.split(b"\n")
        rest.append(first)
        size += len(first)
        if size > completions.MOST_BYTES:
            raise completions.too_large()
        if others:
            yield b"".join(rest)
            for line in others[:-1]:
                yield line
            rest, size = [others[-1]], len(others[-1])
    if size:
        yield b"".join(rest)
