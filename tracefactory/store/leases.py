"""Leases for writing a stage's folder: one run at a time, after all workers of a dead run have exited.

A lease is an exclusive `flock` on a file in the stage's folder, so it is released when its process ends, in any way.
Workers can outlive a killed driver for some seconds; each holds a shared lock on its run's `alive` file, and the next
owner of the lease waits for these locks. On file systems where locks are local to a host, the heartbeat (the mtime of
the lease) is used instead: the lease of another host is free after `STALE_S` without one (`store.heartbeats`).
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from tracefactory.store.heartbeats import Heartbeats

HEARTBEAT_S = 10.0
STALE_S = 60.0
"""After so many seconds without a heartbeat a process of another host is taken to be dead."""


class RunLock:
    """A shared lock on `runs/<run>/alive`, held by every process of a run until it ends."""

    def __init__(self, root: Path, run_id: str) -> None:
        path = alive_file(root, run_id)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a")
        fcntl.flock(self._file, fcntl.LOCK_SH)

    def close(self) -> None:
        self._file.close()


def alive_file(root: Path, run_id: str) -> Path:
    return root / "runs" / run_id / "alive"


class Lease:
    """The exclusive right to write one stage's folder. Waits for another run's lease, and reports it with `notify`."""

    def __init__(self, root: Path, folder: Path, run_id: str, notify: Callable[[str], None]) -> None:
        self.root = root
        self.path = folder / "lease.json"
        self.run_id = run_id
        self.notify = notify
        self._file: IO[bytes] | None = None
        self._heartbeats = Heartbeats()
        self._heartbeat: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Lease:
        while not self._is_in_place():  # otherwise the folder was deleted while this waited (`store.garbage`)
            if self._file is not None:
                self._file.close()
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with suppress(FileNotFoundError):
                self._file = self.path.open("a+b")
                try:
                    await self._acquire()
                except BaseException:
                    self._file.close()
                    raise
        assert self._file is not None
        self._file.seek(0)
        self._file.truncate()
        owner = {"run": self.run_id, "host": socket.gethostname(), "pid": os.getpid()}
        self._file.write(json.dumps(owner).encode())
        self._file.flush()
        self._heartbeat = asyncio.create_task(self._send_heartbeats())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._heartbeat is not None:
            self._heartbeat.cancel()
        if self._file is not None:
            self._file.truncate(0)
            self._file.close()

    def _is_in_place(self) -> bool:
        """Return whether the file that is open here is the one that others open."""
        try:
            return (
                self._file is not None
                and not self._file.closed
                and os.path.samestat(os.fstat(self._file.fileno()), self.path.stat())
            )
        except FileNotFoundError:
            return False

    async def _acquire(self) -> None:
        """Wait for the lock, and report its owner once."""
        notified = False
        while (holder := self._try_lock()) is not None:
            if not notified:
                self.notify(f"{self.path.parent.name}: waiting for {holder}")
                notified = True
            await asyncio.sleep(0.2)

    def _try_lock(self) -> str | None:
        """Try to take the lock; return a description of its owner, or None on success."""
        assert self._file is not None
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            with suppress(ValueError):
                return f"{_describe(self._owner())}, which is writing it"
            return "another run, which is writing it"
        try:
            owner = self._owner()
        except ValueError as error:  # perhaps of a run on another host, which would renew it
            silent_s = self._heartbeats.silent_s(self.path)
            if silent_s >= STALE_S:
                return None
            fcntl.flock(self._file, fcntl.LOCK_UN)
            return f"its damaged lease {self.path} ({error}) to become stale, in {STALE_S - silent_s:.0f} s at most"
        if owner is None or owner["run"] == self.run_id:
            return None
        if owner["host"] != socket.gethostname() and self._heartbeats.silent_s(self.path) < STALE_S:
            fcntl.flock(self._file, fcntl.LOCK_UN)
            return f"{_describe(owner)}, until it ends or shows no sign of life for {STALE_S:g} s"
        if has_workers(self.root, owner["run"]):
            fcntl.flock(self._file, fcntl.LOCK_UN)
            return f"{_describe(owner)}, whose workers are still finishing"
        return None

    def _owner(self) -> dict[str, Any] | None:
        assert self._file is not None
        self._file.seek(0)
        return owner_in(self._file.read().decode())

    async def _send_heartbeats(self) -> None:
        while True:
            await asyncio.sleep(HEARTBEAT_S)
            os.utime(self.path)


def owner_in(text: str) -> dict[str, Any] | None:
    """Return the owner that a lease names (run, host and pid), None for a lease that was given back.

    Raises:
        ValueError: when the lease is damaged.
    """
    if not text:
        return None
    owner = json.loads(text)
    if not isinstance(owner, dict) or owner.keys() != {"run", "host", "pid"}:
        raise ValueError("it does not name its run")
    return owner


def has_workers(root: Path, run_id: str) -> bool:
    """Return whether a process still holds the run's `alive` lock."""
    return is_locked(alive_file(root, run_id))


def is_locked(path: Path) -> bool:
    """Return whether a process of this host holds a lock on a file, which is not changed; False without such a file."""
    try:
        # Network file systems lock only what is open for writing, read-only ones cannot open anything for it.
        with path.open("r+" if os.access(path, os.W_OK) else "r") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def _describe(owner: dict[str, Any] | None) -> str:
    return "another run" if owner is None else f"run {owner['run']} (process {owner['pid']} on {owner['host']})"
