"""Who may write: one run per stage, and nobody while an orphan of a dead run is still finishing.

A lease is an exclusive `flock` on a file in the stage's folder, so it ends with its process however that ends. Workers
outlive a killed driver for some seconds; each holds a shared lock on its run's `alive` file, and whoever takes over a
lease waits for that. On file systems where locks are local to a host, the lease's heartbeat (its mtime) tells.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import IO, Any

HEARTBEAT_S = 10.0
STALE_S = 60.0


class RunLock:
    """Says that a process of a run lives: a shared lock on `runs/<run>/alive`, held until the process ends."""

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
    """The right to write one stage's folder. Waits for another run's lease, saying so through `tell`."""

    def __init__(self, root: Path, folder: Path, run_id: str, tell: Callable[[str], None]) -> None:
        self.root = root
        self.path = folder / "lease.json"
        self.run_id = run_id
        self.tell = tell
        self._file: IO[str] | None = None
        self._beat: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Lease:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self.path.open("a+")
        try:
            await self._acquired()
        except BaseException:
            self._file.close()
            raise
        self._file.seek(0)
        self._file.truncate()
        json.dump({"run": self.run_id, "host": socket.gethostname(), "pid": os.getpid()}, self._file)
        self._file.flush()
        self._beat = asyncio.create_task(self._keep_beating())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._beat is not None:
            self._beat.cancel()
        if self._file is not None:
            self._file.truncate(0)
            self._file.close()

    async def _acquired(self) -> None:
        """Wait until the lock is ours, saying once for whom."""
        told = False
        while (holder := self._held_by()) is not None:
            if not told:
                self.tell(f"{self.path.parent.name}: waiting for {holder}")
                told = True
            await asyncio.sleep(0.2)

    def _held_by(self) -> str | None:
        """Try to take the lock; return a description of who has it, or None when it is ours."""
        assert self._file is not None
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return f"{_name(self._owner())}, which is writing it"
        owner = self._owner()
        if owner is None or owner["run"] == self.run_id:
            return None
        elsewhere = owner["host"] != socket.gethostname()
        fresh = elsewhere and time.time() - self.path.stat().st_mtime < STALE_S
        if fresh or has_workers(self.root, owner["run"]):
            fcntl.flock(self._file, fcntl.LOCK_UN)
            return f"{_name(owner)}, whose workers are still finishing"
        return None

    def _owner(self) -> dict[str, Any] | None:
        assert self._file is not None
        self._file.seek(0)
        text = self._file.read()
        return json.loads(text) if text.endswith("}") else None

    async def _keep_beating(self) -> None:
        while True:
            await asyncio.sleep(HEARTBEAT_S)
            os.utime(self.path)


def has_workers(root: Path, run_id: str) -> bool:
    """Tell whether any process still holds the run's `alive` lock."""
    path = alive_file(root, run_id)
    if not path.exists():
        return False
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _name(owner: dict[str, Any] | None) -> str:
    return "another run" if owner is None else f"run {owner['run']} (process {owner['pid']} on {owner['host']})"
