"""The log of a run: `runs/<run>/log.jsonl`, one JSON object a line, of a bounded size.

Every line has `time` (Unix seconds), `event` and `run`. Failures of requests and rows are logged one by one up to
`LIMIT` for each kind of a stage, and then only counted; the lines `progress` and `run_ended` have the counts. At
`MAX_BYTES` the file becomes `log.1.jsonl`, in the place of an earlier one, and a new one is begun.
"""

from __future__ import annotations

import json
import math
import os
import threading
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

LIMIT = 100
"""Failures of one kind of one stage that are logged one by one."""
MAX_BYTES = 32_000_000
LOG, EARLIER = "log.jsonl", "log.1.jsonl"
FAILURES = frozenset({"request_failed", "row_failed"})
"""The events that are counted: each has `stage`, `kind` and `count`."""
_CHARACTERS, _ITEMS, _LOCK_S = 1_000, 1_000, 1.0
_SHORTEST_SECRET = 6
"""A shorter value, such as a port, would be replaced wherever its digits occur."""


def one_line(text: str, limit: int = _CHARACTERS) -> str:
    """Return a text as one line that is safe to print: white space is one space, control characters are escaped.

    Args:
        text: any text, such as the message of a server.
        limit: the most characters; a longer text ends in an ellipsis.
    """
    spaced = " ".join(text[: 4 * limit].split())
    shown = "".join(one if one.isprintable() else f"\\u{ord(one):04x}" for one in spaced)
    return shown if len(shown) <= limit and len(text) <= 4 * limit else f"{shown[: limit - 1]}…"


class RunLog:
    """Writes the log of one run; may be used from several threads.

    Args:
        folder: the folder of the run.
        run: the name of the run, which every line has.
        secrets: the values of environment variables by name, which are replaced by `env:NAME`.
    """

    def __init__(self, folder: Path, run: str, secrets: Mapping[str, str] | None = None) -> None:
        self.path, self.run = folder / LOG, run
        known = {value: f"env:{name}" for name, value in (secrets or {}).items() if len(value) >= _SHORTEST_SECRET}
        self._secrets = sorted(known.items(), key=lambda one: -len(one[0]))  # one may be a part of another
        self._lock = threading.RLock()  # a signal handler may write while its own thread does
        self._failures: Counter[tuple[str, str, str]] = Counter()
        self._lost = 0
        self._torn = False
        self._file = self._open()
        self._size = os.fstat(self._file).st_size

    def write(self, event: str, **what: Any) -> None:
        """Add a line. Where the disk is full, a later line says how many are missing: the run goes on without them.

        Args:
            event: what happened.
            what: JSON data about it; texts are cleaned by `one_line`, and cut.
        """
        if not self._lock.acquire(timeout=_LOCK_S):  # another thread hangs in a write; do not hang with it
            return
        try:
            if event in FAILURES and not self._is_one_by_one(event, what):
                return
            if event in ("progress", "run_ended"):
                what = {**what, "failures": self.failures()}
            if self._lost:
                what = {**what, "lines_lost": self._lost}
            self._append({"time": time.time(), "event": event, "run": self.run, **self._cleaned(what)})
        finally:
            self._lock.release()

    def failures(self) -> list[dict[str, Any]]:
        """Return how often every kind of failure has happened to every stage."""
        counted = sorted(self._failures.items())
        return [{"event": event, "stage": stage, "kind": kind, "count": n} for (event, stage, kind), n in counted]

    def text(self, text: str) -> str:
        """Return a text as it is logged: one line without secrets."""
        for value, name in self._secrets:
            text = text.replace(value, name)
        return one_line(text)

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            os.close(self._file)
            self._file = -1  # so that nothing is written to another file that gets its number

    def _is_one_by_one(self, event: str, what: Mapping[str, Any]) -> bool:
        """Count a failure, and return whether it is one of the first of its kind."""
        key, count = (event, str(what["stage"]), self.text(str(what["kind"]))), int(what.get("count", 1))
        self._failures[key] += count
        return "problem" in what and self._failures[key] <= LIMIT

    def _append(self, line: Mapping[str, Any]) -> None:
        data = (json.dumps(line, ensure_ascii=False) + "\n").encode()
        try:
            if self._size + len(data) > MAX_BYTES:
                os.replace(self.path, self.path.with_name(EARLIER))
                before, self._file = self._file, self._open()
                os.close(before)
                self._size, self._torn = 0, False
            data = b"\n" * self._torn + data
            written = os.write(self._file, data)
        except OSError:
            self._lost += 1
            return
        self._size += written
        self._torn = written < len(data)
        self._lost = self._lost + 1 if self._torn else 0

    def _open(self) -> int:
        return os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)

    def _cleaned(self, value: Any) -> Any:
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, Mapping):
            pairs = list(value.items())[:_ITEMS]
            return {self.text(str(name)): self._cleaned(one) for name, one in pairs}
        if isinstance(value, bool | int | None):
            return value
        if isinstance(value, float):
            return value if math.isfinite(value) else None  # JSON has no other numbers
        if isinstance(value, Iterable):
            return [self._cleaned(one) for one in list(value)[:_ITEMS]]
        return self.text(str(value))
