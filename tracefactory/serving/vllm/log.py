"""Read a vLLM server's log: the progress of a start, and the first error."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

# "(EngineCore pid=7) INFO 11-21 05:02:38 [core.py:402] init engine ..." -> "init engine ..."
_PROCESS = re.compile(r"^\([^)]*pid=\d+\)\s*")
_STAMP = re.compile(r"^[A-Z]+ \d\d-\d\d \d\d:\d\d:\d\d \[[^\]]*\]\s*")
_PERCENT = re.compile(r"\d%")
_ERROR = re.compile(r"^[\w.]*(?:Error|Exception): \S")
_ERROR_CHARS = 500


def last_message(log_file: Path, start: int) -> str:
    """Return the last log message or progress bar in a log from byte `start` on; empty when there is none."""
    message = ""
    for line in _lines(log_file, start):
        stamp = _STAMP.match(line)
        if stamp is not None:
            message = line[stamp.end() :] or message
        elif _PERCENT.search(line):
            message = line
    return message


def first_error(log_file: Path, start: int) -> str | None:
    """Return the first exception in a log from byte `start` on, None when there is none.

    Later ones are consequences: a worker's error ends the engine, and the API server reports the end of the engine.
    """
    for line in _lines(log_file, start):
        message = _STAMP.sub("", line)
        if _ERROR.match(message):
            return message[:_ERROR_CHARS]
    return None


def _lines(log_file: Path, start: int) -> Iterator[str]:
    """Yield the lines of a log without their process names; lines of progress bars end in carriage returns."""
    if log_file.exists():
        with log_file.open("rb") as file:
            file.seek(start)
            for line in file.read().decode("utf-8", "replace").splitlines():
                yield _PROCESS.sub("", line).strip()
