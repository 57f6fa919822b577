"""The interface of two models that write traces together."""

from __future__ import annotations

from typing import Protocol

from tracefactory.core.model import ChatRequest
from tracefactory.decoding.provenance import Decoded


class ModelPair(Protocol):
    """Two models that answer requests together."""

    async def complete(self, request: ChatRequest) -> Decoded:
        """Return one trace.

        Raises:
            RequestFailed: when the trace could not be written.
        """
        ...

    async def close(self) -> None:
        """Cancel unfinished traces and release what the pair owns; by default it owns nothing."""
        return
