"""The writer of the request store: appends paid completions, and keeps those that cannot be written yet in memory.

A failed write is tried again until it succeeds. Meanwhile no request may be sent: `Writer.reserve`, which is entered
before a request is sent, waits. It also waits while the file system has too little space for the answers in flight, and
while completions of this machine cannot be put into a shared state (`store.shared.holding`).
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from tracefactory.core.errors import Interrupted, RunError
from tracefactory.store.journals import Journal, encode
from tracefactory.store.shared.holding import why_held

ROTATE_BYTES = 32 << 20
FREE_BYTES = 64 << 20
"""Space that is left free for everything but completions; at most a tenth of the file system."""
RETRY_S = 1.0
"""Time between two attempts to write."""
_LOOK_S = 0.25  # between two looks of a request that waits to be sent
_SYNC_EVERY_S = 1.0
_MEASURE_EVERY_S = 1.0


class _Answer(NamedTuple):
    """A paid completion that is not on disk yet. `written` is the future of its `append`, if that waits."""

    key: str
    record: Mapping[str, Any]
    near: str
    written: asyncio.Future[int] | None = None


class Writer:
    """Appends lines to journals of its own.

    Args:
        folder: the folder of the journals.
        written: called with key, name of the journal, start and length of every line that was written.
        free: bytes to leave free on the file system; `FREE_BYTES` by default.
    """

    def __init__(self, folder: Path, written: Callable[[str, str, int, int], None], free: int | None) -> None:
        self.folder = folder
        self.draining = False
        self._report = written
        self._space = _Space(folder, free)
        self._journal: Journal | None = None
        self._synced = 0.0
        self._unsynced: list[tuple[str, Mapping[str, Any], str]] = []  # written since the last sync began
        self._waiting: deque[_Answer] = deque()  # not written, oldest first
        self._retrying: asyncio.Task[None] | None = None
        self._failure = ""
        self._shortage = ""
        self._short = 0  # requests that wait to be sent

    @property
    def blocked(self) -> str:
        """Why nothing is written or sent at the moment, and what to do; empty if nothing is wrong."""
        if self._failure:
            waiting = f"{len(self._waiting)} paid answers wait in memory" if self._waiting else "no answer was lost"
            return f"{self._failure}; {waiting}, and no request is sent. {_REMEDY}"
        return self._shortage

    @asynccontextmanager
    async def reserve(self, size: int) -> AsyncIterator[None]:
        """Reserve space for the record of a request before it is sent, and wait until there is enough.

        Args:
            size: bytes of the record in the worst case.

        Raises:
            Interrupted: when `draining` is set before there is space.
        """
        if self._failure or not self._space.has(size):
            await self._wait_for(size)
        if self.draining:
            raise Interrupted
        self._space.reserved += size
        try:
            yield
        finally:
            self._space.reserved -= size

    async def _wait_for(self, size: int) -> None:
        """Wait until lines can be written and there is space for `size` bytes, or `draining` is set."""
        self._short += 1
        try:
            while not self.draining and (self._failure or not self._space.has(size)):
                self._shortage = "" if self._failure else self._space.shortage(size)
                await asyncio.sleep(_LOOK_S)
        finally:
            self._short -= 1
            if not self._short:
                self._shortage = ""

    async def append(self, key: str, record: Mapping[str, Any], near: str) -> int:
        """Append a completion, and return the length of its line when it is written, however long that takes.

        When this is cancelled, it is still written.
        """
        if not self._waiting:
            try:
                journal, length = self._write(key, record, near)
            except OSError as error:
                self._fail(error)
            else:
                if journal.size > ROTATE_BYTES or time.monotonic() - self._synced > _SYNC_EVERY_S:
                    await self._sync(journal)
                return length
        written: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._keep([_Answer(key, record, near, written)])
        return await asyncio.shield(written)

    async def sync(self) -> None:
        """Return when every line is on disk, however long that takes."""
        if self._journal is not None:
            await self._sync(self._journal)
        while True:
            if not (self._waiting or self._failure):
                return
            await asyncio.sleep(_LOOK_S)

    def close(self) -> None:
        """Write what waits, and close the journal.

        Raises:
            RunError: when answers cannot be written or synced.
        """
        if self._retrying is not None and not self._retrying.done():
            self._retrying.cancel()
        self._retrying = None
        try:
            self._write_waiting()
            if self._journal is not None:
                self._journal.sync()
        except OSError as error:
            self._fail(error)
            lost, unsynced = len(self._waiting), len(self._unsynced)
            self._waiting.clear()
            raise RunError(
                f"{self._failure}: {lost} paid answers in memory are lost and will be paid again, and {unsynced} that"
                " were written last are lost if the machine loses power now"
            ) from error
        finally:
            self._unsynced.clear()
            self._abandon()

    def _write(self, key: str, record: Mapping[str, Any], near: str) -> tuple[Journal, int]:
        if self._journal is None:
            self._journal = Journal.create(self.folder)
        journal = self._journal
        line = encode(key, record, near)
        try:
            start = journal.append(line)
        except OSError:
            if journal.torn:
                self._abandon()
            raise
        length = len(line)
        self._unsynced.append((key, record, near))
        self._space.available -= length
        self._report(key, journal.path.name, start, length)
        return journal, length

    def _write_waiting(self) -> None:
        while self._waiting:
            answer = self._waiting[0]
            _, length = self._write(answer.key, answer.record, answer.near)
            self._waiting.popleft()
            if answer.written is not None and not answer.written.done():
                answer.written.set_result(length)
        self._failure = ""

    async def _sync(self, journal: Journal) -> None:
        """Sync the journal to disk, and begin another one when it is large."""
        full = journal.size > ROTATE_BYTES
        if full:
            self._journal = None
        self._synced = time.monotonic()
        unsynced, self._unsynced = self._unsynced, []
        try:
            await asyncio.to_thread(journal.sync)
        except OSError as error:  # what was written since the last sync may be lost: it is written again elsewhere
            self._fail(error, journal.path)
            if self._journal is journal:
                unsynced += self._unsynced
                self._unsynced = []
                self._abandon()
            self._keep([_Answer(*one) for one in unsynced])
        finally:
            if full:
                journal.close()

    def _keep(self, answers: list[_Answer]) -> None:
        """Keep answers in memory until they can be written."""
        self._waiting += answers
        if self._retrying is None or self._retrying.done():
            self._retrying = asyncio.create_task(self._retry())

    async def _retry(self) -> None:
        while self._waiting or self._failure:
            await asyncio.sleep(RETRY_S)
            try:
                self._write_waiting()
            except OSError as error:
                self._fail(error)
            else:
                if self._journal is not None:
                    await self._sync(self._journal)

    def _fail(self, error: OSError, path: Path | None = None) -> None:
        if path is None:
            path = self.folder if self._journal is None else self._journal.path
        self._failure = f"{path} could not be written ({error.strerror})"
        self._space.forget()

    def _abandon(self) -> None:
        """Close the journal; the next line begins another one."""
        journal, self._journal = self._journal, None
        if journal is not None:
            with suppress(OSError):  # of a file that is closed all the same
                journal.close()


_REMEDY = "Free space or make it writable: the run then goes on by itself"


class _Space:
    """The free space of the file system, measured about once a second, less what is reserved."""

    def __init__(self, folder: Path, free: int | None) -> None:
        self.folder = folder
        self.reserved = 0
        self._free = free
        self.available = 0
        self._measured = float("-inf")
        self._held = ""  # why the shared state holds requests back

    def has(self, size: int) -> bool:
        """Return whether there is space for `size` more bytes, and nothing else holds requests back."""
        if time.monotonic() - self._measured > _MEASURE_EVERY_S:
            self._measure()
        return not self._held and size + self.reserved <= self.available

    def shortage(self, size: int) -> str:
        """Return why there is no space for `size` more bytes, and what to do."""
        if self._held:
            return self._held
        have, need = max(0, self.available) / 1e6, (size + self.reserved) / 1e6
        return (
            f"{self.folder} has {have:,.1f} MB left for completions, and the next request and those in flight may need"
            f" {need:,.1f} MB; no further request is sent. {_REMEDY}"
        )

    def forget(self) -> None:
        """Measure again at the next look."""
        self._measured = float("-inf")

    def _measure(self) -> None:
        folder = self.folder
        while not folder.exists() and folder != folder.parent:
            folder = folder.parent
        found = os.statvfs(folder)
        margin = min(FREE_BYTES, found.f_blocks * found.f_frsize // 10) if self._free is None else self._free
        self.available = found.f_bavail * found.f_frsize - margin
        self._held = why_held(self.folder)
        self._measured = time.monotonic()
