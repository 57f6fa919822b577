"""The requests of a model that wait to be sent, and when batches of rows are begun that need more of them."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from itertools import count
from typing import Any, TypeVar

FEWEST_ROWS = 256
"""Rows of batches that may have begun and have not asked yet, however few requests may be in flight."""
T = TypeVar("T")


class _Begun:
    """The rows of a batch that has begun, until it asks for the first time or ends."""

    def __init__(self, rows: int) -> None:
        self.rows = rows


_BATCH: ContextVar[_Begun | None] = ContextVar("_BATCH", default=None)


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
                self._coming -= rows
                self._grant()
            raise
        return asyncio.create_task(self._run(_Begun(rows), work))

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[None]:
        """Wait until a request may be sent, and hold its place in flight."""
        with self._waits():
            await self._slots.acquire()
        try:
            yield
        finally:
            self._slots.release()

    @contextmanager
    def _waits(self) -> Iterator[None]:
        self._asks(_BATCH.get())
        self._waiting += 1
        try:
            yield
        finally:
            self._waiting -= 1
            self._grant()

    async def _run(self, batch: _Begun, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        _BATCH.set(batch)
        try:
            return await work()
        finally:
            self._asks(batch)
            self._grant()

    def _asks(self, batch: _Begun | None) -> None:
        if batch is not None:
            self._coming -= batch.rows
            batch.rows = 0

    def _grant(self) -> None:
        """Let batches begin, as far as few enough requests wait, and rows that have not asked yet are few enough."""
        while self._turns and self._waiting < self.most and self._coming < max(self.most, FEWEST_ROWS):
            _, _, rows, turn = heapq.heappop(self._turns)
            if not turn.done():  # cancelled
                self._coming += rows
                turn.set_result(None)
