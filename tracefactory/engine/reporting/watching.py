"""Follow a run from its folder alone: what its log says, and whether it goes on."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import IO, Any

from tracefactory.core.errors import UserError, nearest
from tracefactory.engine.reporting.log import LOG
from tracefactory.engine.runs import RUN, End
from tracefactory.store.heartbeats import Heartbeats
from tracefactory.store.leases import STALE_S, alive_file, has_workers

_CHUNK = 1_000_000
_LONGEST_LINE = 8_000_000  # bytes; what is longer was not written by a run


class LogReader:
    """Reads what is added to the log of a run. The end of a line that is torn is waited for.

    Args:
        path: the log; it may not exist yet, and may be replaced.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: IO[bytes] | None = None
        self._rest = b""
        self._skips = False
        self.damaged = 0
        """Lines that are no JSON object."""

    def new(self) -> list[dict[str, Any]]:
        """Return the lines since the last call."""
        found: list[dict[str, Any]] = []
        while True:
            if self._file is None and not self._open():
                return found
            assert self._file is not None
            while data := self._file.read(_CHUNK):
                found += self._lines(data)
            if not self._is_replaced():
                return found
            self.close()

    def close(self) -> None:
        """Close the file; what follows is read from the beginning of the one that is there then."""
        if self._file is not None:
            self._file.close()
        self._file, self._rest, self._skips = None, b"", False

    def _open(self) -> bool:
        try:
            self._file = self._path.open("rb", buffering=0)
        except FileNotFoundError:
            return False
        return True

    def _is_replaced(self) -> bool:
        """Return whether the name belongs to another file now, or the file was cut."""
        assert self._file is not None
        try:
            there, here = os.stat(self._path), os.fstat(self._file.fileno())
        except FileNotFoundError:
            return False  # what was read stays known, and a new file has another inode
        return there.st_ino != here.st_ino or there.st_size < self._file.tell()

    def _lines(self, data: bytes) -> list[dict[str, Any]]:
        *whole, rest = (self._rest + data).split(b"\n")
        if self._skips and whole:
            whole, self._skips = whole[1:], False
        if len(rest) > _LONGEST_LINE or self._skips:
            self.damaged += not self._skips
            rest, self._skips = b"", True
        self._rest = rest
        return [line for line in map(self._parsed, whole) if line is not None]

    def _parsed(self, line: bytes) -> dict[str, Any] | None:
        if not line.strip():
            return None
        try:
            found = json.loads(line)
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict) or not isinstance(found.get("event"), str):
            self.damaged += 1
            return None
        return found


class Watched:
    """One run: its new lines, and whether it goes on.

    Args:
        root: the folder of the project's state.
        run: the name of the run.
    """

    def __init__(self, root: Path, run: str) -> None:
        self.root, self.run = root, run
        self.folder = root / "runs" / run
        self.log = LogReader(self.folder / LOG)
        self.left: int | None = None
        """The exit status of a command that has ended at once, without an outcome."""
        self._host = ""
        self._heartbeats = Heartbeats()

    def new(self) -> list[dict[str, Any]]:
        """Return the lines since the last call."""
        found = self.log.new()
        for line in found:
            if line["event"] == "run_begun":
                self._host = str(line.get("host", ""))
            elif line["event"] == "left" and type(line.get("exit_status")) is int:
                self.left = line["exit_status"]
        return found

    def state(self) -> End | None:
        """Return `RUNNING`, `KILLED`, or None for a run that has left an outcome.

        A run of another host, whose locks may not be seen here, is taken to be killed when its log has not grown for
        `STALE_S` seconds; of this host, at once.
        """
        alive = has_workers(self.root, self.run)
        if (self.folder / "outcome.json").exists():  # written before the lock is given back
            return None
        if alive:
            return End.RUNNING
        if self.left is not None or self._host == socket.gethostname():
            return End.KILLED
        return End.RUNNING if self.silent_s() < STALE_S else End.KILLED

    def close(self) -> None:
        """Close the log."""
        self.log.close()

    def silent_s(self) -> float:
        """Return for how many seconds the run has shown no sign of life while it was watched."""
        for path in (self.folder / LOG, alive_file(self.root, self.run)):
            try:
                return self._heartbeats.silent_s(path)
            except FileNotFoundError:
                continue
        return STALE_S


def newest_run(root: Path) -> str | None:
    """Return the name of the run that was begun last, None without one."""
    return max(_runs(root), default=None)


def named_run(root: Path, run: str) -> str:
    """Return the name of a run that there is.

    Raises:
        UserError: when there is none of this name.
    """
    runs = _runs(root)
    if run in runs:
        return run
    hint = nearest(run, runs)
    raise UserError(f"no run {run} under {root / 'runs'}" + (f" ({hint})" if hint else ""))


def _runs(root: Path) -> list[str]:
    try:
        return [one.name for one in os.scandir(root / "runs") if RUN.fullmatch(one.name) and one.is_dir()]
    except (FileNotFoundError, NotADirectoryError):
        return []
