"""Bounds on what is read of a response: its bytes while they come, and what an error says."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from typing import Any

import httpx2

from tracefactory.serving import completions
from tracefactory.serving.completions import clean, too_large

_MESSAGE_CHARS = 500
_READ_CHARS = 100_000  # of a message, before its white space is made one space


async def refuse_large(response: httpx2.Response) -> None:
    """Let a response fail when more of it comes than `completions.MOST_BYTES`: a hook of the HTTP client.

    Args:
        response: the response, whose body is not read yet. Bytes are counted as they are after decompression.
    """
    declared = response.headers.get("content-length", "")
    if declared.isdigit() and len(declared) < 20 and int(declared) > completions.MOST_BYTES:
        raise too_large()
    whole = response.aiter_bytes

    async def counted(chunk_size: int | None = None) -> AsyncGenerator[bytes, None]:
        size = 0
        async for chunk in whole(chunk_size):
            size += len(chunk)
            if size > completions.MOST_BYTES:
                raise too_large()
            yield chunk

    # Whoever reads the body, at once or as a stream, goes by this method.
    response.aiter_bytes = counted  # type: ignore[method-assign]


def error_detail(body: object, secret: str) -> tuple[Mapping[str, Any], str]:
    """Return the `error` object of a body and its message in one line, without the key.

    Args:
        body: the body of an error, as JSON or text.
        secret: the key of the server, or nothing.
    """
    error = body.get("error", body) if isinstance(body, dict) else body
    detail = error if isinstance(error, dict) else {"message": error}
    try:
        told = str(detail.get("message") or "")[:_READ_CHARS]
    except (RecursionError, ValueError):  # nested deeply, or a number of thousands of digits
        told = ""
    if secret:  # before it is cut, so that no part of the key is left
        told = told.replace(secret, "***")
    return detail, clean(" ".join(told.split())[:_MESSAGE_CHARS])
