"""The requests of a model that wait to be sent, and when batches of rows are begun that need more of them."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from contextvars import ContextVar
from itertools import count
from typing import Any, TypeVar

FEWEST_ROWS = 256
"""Rows of batches that may have begun and have not asked yet, however few requests may be in flight."""
T = TypeVar("T")


_BATCH: ContextVar[_Batch | None] = ContextVar("_BATCH", default=None)


class Backlog:
    """Sends at most `most` requests of a model at once, and begins batches while fewer than `most` others wait.

    Batches of the shard that began first go first. In one queue all shards would end at the same time, and while they
    waited for their last answers nothing would be left to send.

    Args:
        most: requests in flight.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._waiting = 0
        self._coming = 0
        self._slots = asyncio.Semaphore(most)
        self._turns: list[tuple[int, int, int, asyncio.Future[None]]] = []  # shard, batch, rows
        self._shards, self._batches = count(), count()

    def shard(self) -> int:
        """Return the place of a shard that begins now."""
        return next(self._shards)

    async def begin(self, shard: int, rows: int, work: Callable[[], Coroutine[Any, Any, T]]) -> asyncio.Task[T]:
        """Start the work on a batch when it is its turn.

        Args:
            shard: the place of its shard.
            rows: the number of its rows.
            work: sends its requests through `slot`.
        """
        turn = asyncio.get_running_loop().create_future()
        heapq.heappush(self._turns, (shard, next(self._batches), rows, turn))
        self._grant()
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():
                self.expect_fewer(rows)
            raise
        return asyncio.create_task(_Batch(self, rows).run(work))

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[None]:
        """Wait until a request may be sent, and hold its place in flight."""
        self._waiting += 1
        if (batch := _BATCH.get()) is not None:
            batch.has_asked()
        try:
            await self._slots.acquire()
        finally:
            self._waiting -= 1
            self._grant()
        try:
            yield
        finally:
            self._slots.release()

    def expect_fewer(self, rows: int) -> None:
        """Note that rows of batches that have begun are no longer expected to ask this model first."""
        self._coming -= rows
        # The other requests of the batch are made in this turn of the loop: they wait before more batches begin.
        asyncio.get_running_loop().call_soon(self._grant)

    def _grant(self) -> None:
        """Let batches begin, as far as few enough requests wait, and rows that have not asked yet are few enough."""
        while self._turns and self._waiting < self.most and self._coming < max(self.most, FEWEST_ROWS):
            _, _, rows, turn = heapq.heappop(self._turns)
            if not turn.done():  # cancelled
                self._coming += rows
                turn.set_result(None)


class _Batch:
    """A batch that has begun, whose rows are expected to ask until it sends a request to any model, or ends."""

    def __init__(self, backlog: Backlog, rows: int) -> None:
        self._backlog, self._rows = backlog, rows

    async def run(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        _BATCH.set(self)
        try:
            return await work()
        finally:
            self.has_asked()

    def has_asked(self) -> None:
        rows, self._rows = self._rows, 0
        if rows:
            self._backlog.expect_fewer(rows)
