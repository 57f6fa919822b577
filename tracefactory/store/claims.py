"""Claims on requests in flight: of all processes on one store, only one sends a request that several of them want.

    requests/claims/<0-f>.claims     lines of fixed length under a lock: who began or ended which request
    requests/claims/<writer>.alive   locked by its process while it lives; a claim of a dead process is void

A claim is released when the completion is stored or the request has failed. On file systems whose locks are local to a
host, the `.alive` file is watched instead, which its process renews (`store.heartbeats`).
"""

from __future__ import annotations

import fcntl
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from enum import Enum, auto
from pathlib import Path
from uuid import uuid4

from tracefactory.core.errors import RunError
from tracefactory.store.heartbeats import Heartbeats
from tracefactory.store.leases import HEARTBEAT_S, STALE_S, is_locked

ROTATE_BYTES = 4 << 20
_LINE = 64 + 32 + 2  # key, writer, "+" or "-", end of line
_HEADER = 17  # a number that changes when the file is rewritten, and an end of line


class Claim(Enum):
    """The answer to a claim.

    TAKEN: send the request. CHECK: it was in flight elsewhere a while ago; look into the store first, then send it.
    HELD: another process is sending it.
    """

    TAKEN = auto()
    CHECK = auto()
    HELD = auto()


class Claims:
    """The claims of one process; use it from one thread."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.writer = uuid4().hex
        self._own = folder / f"{self.writer}.alive"
        self._file = self._own.open("x")
        fcntl.flock(self._file, fcntl.LOCK_EX)
        self._file.write(socket.gethostname())
        self._file.flush()
        self._shards: dict[str, _Shard] = {}
        self._alive: dict[str, tuple[float, bool]] = {}  # by writer: when it was looked up, and whether it lives
        self._heartbeats = Heartbeats()
        self._closed = threading.Event()
        self._remove_dead(Heartbeats())
        threading.Thread(target=self._renew, daemon=True).start()

    def take(self, key: str) -> Claim:
        """Claim a request before it is sent.

        Raises:
            RunError: when the claim cannot be written.
        """
        shard = self._shard(key)
        with shard.locked():
            shard.read(self.writer)
            holder = shard.holders.get(key)
            if holder is not None and holder != self.writer and self.is_alive(holder):
                return Claim.HELD
            shard.write(key, self.writer, b"+")
            return Claim.CHECK if shard.missed or int(key[:16], 16) in shard.elsewhere else Claim.TAKEN

    def release(self, key: str) -> None:
        """End a claim: the completion is stored, or there is none."""
        shard = self._shard(key)
        with shard.locked():
            shard.read(self.writer)
            shard.write(key, self.writer, b"-")
            if shard.size > ROTATE_BYTES:
                shard.rewrite([one for one in shard.holders.items() if self.is_alive(one[1])])

    def close(self) -> None:
        """End all claims of this process."""
        self._closed.set()
        for shard in self._shards.values():
            os.close(shard.descriptor)
        self._shards.clear()
        self._own.unlink(missing_ok=True)
        self._file.close()

    def _shard(self, key: str) -> _Shard:
        if key[0] not in self._shards:
            self._shards[key[0]] = _Shard(self.folder / f"{key[0]}.claims")
        return self._shards[key[0]]

    def is_alive(self, writer: str) -> bool:
        """Return whether the process with this writer id lives; it is looked up once a second."""
        looked_at, alive = self._alive.get(writer, (float("-inf"), True))
        if alive and time.monotonic() - looked_at > 1.0:
            alive = writer == self.writer or _lives(self.folder / f"{writer}.alive", self._heartbeats)
            self._alive[writer] = (time.monotonic(), alive)
        return alive

    def _renew(self) -> None:
        heartbeats = Heartbeats()  # of this thread
        while not self._closed.wait(HEARTBEAT_S):
            with suppress(OSError):
                os.utime(self._own)
                self._remove_dead(heartbeats)

    def _remove_dead(self, heartbeats: Heartbeats) -> None:
        """Remove the files of dead processes; for those of other hosts this takes several looks."""
        for path in self.folder.glob("*.alive"):
            if path != self._own and not _lives(path, heartbeats):
                path.unlink(missing_ok=True)
                heartbeats.forget(path)


class _Shard:
    """One file of claims and what this process has read of it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        self.holders: dict[str, str] = {}  # requests in flight, by key
        self.elsewhere: set[int] = set()  # what other processes have sent, by the first 64 bits of the key
        self.missed = False  # whether the file was rewritten before all of it was read
        self.size = 0
        self._number = b""

    @contextmanager
    def locked(self) -> Iterator[None]:
        fcntl.flock(self.descriptor, fcntl.LOCK_EX)
        try:
            yield
        except OSError as error:
            raise RunError(f"{self.path}: a claim could not be written: {error.strerror}") from error
        finally:
            fcntl.flock(self.descriptor, fcntl.LOCK_UN)

    def read(self, reader: str) -> None:
        """Read the lines since the last call."""
        number = os.pread(self.descriptor, _HEADER, 0)
        if len(number) < _HEADER or number[-1:] != b"\n":
            self.rewrite([])
            return
        if number != self._number:
            self.missed |= self._number != b""
            self._number, self.size = number, _HEADER
            self.holders.clear()
        while data := os.pread(self.descriptor, 1 << 20, self.size):
            whole = len(data) - len(data) % _LINE
            for start in range(0, whole, _LINE):
                self._note(data[start : start + _LINE], reader)
            self.size += whole
            if not whole:  # a line that a full disk has cut off
                os.ftruncate(self.descriptor, self.size)

    def write(self, key: str, writer: str, sign: bytes) -> None:
        line = key.encode() + writer.encode() + sign + b"\n"
        if os.pwrite(self.descriptor, line, self.size) < _LINE:
            os.ftruncate(self.descriptor, self.size)
            raise OSError(28, "the disk is full")
        self._note(line, writer)
        self.size += _LINE

    def rewrite(self, holders: list[tuple[str, str]]) -> None:
        """Replace the content of the file by the claims that hold."""
        self._number = uuid4().hex[:16].encode() + b"\n"
        self.holders = dict(holders)
        lines = b"".join(key.encode() + writer.encode() + b"+\n" for key, writer in holders)
        os.ftruncate(self.descriptor, 0)
        os.pwrite(self.descriptor, self._number + lines, 0)
        self.size = _HEADER + len(lines)

    def _note(self, line: bytes, reader: str) -> None:
        key, writer = line[:64].decode("ascii", "replace"), line[64:96].decode("ascii", "replace")
        if writer != reader:
            with suppress(ValueError):
                self.elsewhere.add(int(key[:16], 16))
        if line[96:97] == b"+":
            self.holders[key] = writer
        elif self.holders.get(key) == writer:
            del self.holders[key]


def _lives(path: Path, heartbeats: Heartbeats) -> bool:
    """Return whether the process of an `.alive` file lives."""
    try:
        elsewhere = path.read_text() not in ("", socket.gethostname())
        if elsewhere and heartbeats.silent_s(path) < STALE_S:
            return True
    except FileNotFoundError:
        return False
    return is_locked(path)
