"""Journals of the request store: one JSON line for each completion, appended the moment it arrives.

    {"key":"<64 digits>","crc":"<8 digits>","near":"<id of a problem, or nothing>","record":{...}}

A journal has one writer, which holds a lock on it. A line is one `write`, so a killed writer leaves at most one torn
line, at the end of its own file; readers ignore it. Lines of version 1 have neither `crc` nor `near`.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

import orjson

from tracefactory.core.errors import RunError
from tracefactory.core.files import TEMPORARY

PREFIX, SUFFIX = "journal-", ".jsonl"
_KEY = slice(8, 72)  # behind {"key":"
_CRC = slice(81, 89)  # behind ","crc":"
_NEAR_AT = 99  # behind ","near":"
_V1_RECORD_AT = 83  # behind ","record":
_END = b"}\n"


class Line(NamedTuple):
    """One line of a journal, taken apart; `record` is its JSON."""

    key: str
    near: str
    record: bytes
    key_version: int


@dataclass
class Journal:
    """A journal that this process writes."""

    path: Path
    descriptor: int
    size: int = 0

    @classmethod
    def create(cls, folder: Path) -> Journal:
        """Create a journal and lock it for as long as it may still be written."""
        path = folder / f"{PREFIX}{socket.gethostname()}-{os.getpid()}-{uuid4().hex[:8]}{SUFFIX}"
        # It has its name once it is locked: a compaction would take an unlocked one for a closed one and remove it.
        unnamed = folder / f"{TEMPORARY}{path.name}"
        descriptor = os.open(unnamed, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_APPEND, 0o644)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        os.rename(unnamed, path)
        return cls(path, descriptor)

    def append(self, key: str, record: Mapping[str, Any], near: str) -> tuple[int, int]:
        """Append one completion and return where its line starts and how long it is.

        Raises:
            RunError: when it cannot be written whole; nothing of it is left in the file then.
        """
        text = orjson.dumps(record)
        head = f'{{"key":"{key}","crc":"{zlib.crc32(text):08x}","near":"{near}","record":'
        line = head.encode() + text + _END
        try:
            written = os.write(self.descriptor, line)
        except OSError as error:
            raise RunError(f"{self.path}: a completion could not be written: {error.strerror}") from error
        if written != len(line):
            os.ftruncate(self.descriptor, self.size)
            raise RunError(f"{self.path}: a completion could not be written whole: the disk is full")
        place = self.size, len(line)
        self.size += len(line)
        return place

    def sync(self) -> None:
        """Make what was appended survive a power cut."""
        os.fdatasync(self.descriptor)

    def close(self) -> None:
        self.sync()
        os.close(self.descriptor)


def keys_from(path: Path, start: int) -> Iterator[tuple[str, int, int, bool]]:
    """Yield (key, start, length, whether of version 1) of the whole lines of a journal from the byte `start` on."""
    with path.open("rb") as file:
        file.seek(start)
        for line in file:
            if not line.endswith(b"\n"):
                return  # torn, or still being written
            yield line[_KEY].decode(), start, len(line), _is_v1(line)
            start += len(line)


def read_line(path: Path, start: int, length: int) -> dict[str, Any]:
    """Return the record of one line.

    Raises:
        RunError: when the line is damaged.
        FileNotFoundError: when the journal is gone, because it was compacted.
    """
    with path.open("rb") as file:
        file.seek(start)
        raw = file.read(length)
    try:
        line = parse(raw)
        found: dict[str, Any] = orjson.loads(line.record)
    except ValueError as error:
        raise RunError(f"{path}: the line at byte {start} is damaged ({error})") from error
    return found


def lines_of(path: Path) -> Iterator[Line]:
    """Yield the whole lines of a journal.

    Raises:
        RunError: when one is damaged.
    """
    start = 0
    with path.open("rb") as file:
        for raw in file:
            if not raw.endswith(b"\n"):
                return
            try:
                yield parse(raw)
            except ValueError as error:
                raise RunError(f"{path}: the line at byte {start} is damaged ({error})") from error
            start += len(raw)


def parse(raw: bytes) -> Line:
    """Take a line apart.

    Raises:
        ValueError: when it is not what was written.
    """
    if not raw.startswith(b'{"key":"') or not raw.endswith(_END):
        raise ValueError("it is no line of a journal")
    key = raw[_KEY].decode("ascii")
    if _is_v1(raw):
        record = raw[_V1_RECORD_AT : -len(_END)]
        json.loads(record)
        return Line(key, "", record, 1)
    near_end = raw.index(b'"', _NEAR_AT)
    record = raw[near_end + len(b'","record":') : -len(_END)]
    if f"{zlib.crc32(record):08x}".encode() != raw[_CRC]:
        raise ValueError("its checksum does not fit")
    return Line(key, raw[_NEAR_AT:near_end].decode("ascii"), record, 2)


def _is_v1(line: bytes) -> bool:
    return line[72:81] != b'","crc":"'


@contextmanager
def closed_journals(folder: Path) -> Iterator[list[Path]]:
    """Yield the journals whose writer is gone or has moved on, locked against a second compaction."""
    held: list[tuple[Path, int]] = []
    for path in sorted(folder.glob(f"{PREFIX}*{SUFFIX}")):
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
        else:
            held.append((path, descriptor))
    try:
        yield [path for path, _ in held if path.exists()]
    finally:
        for _, descriptor in held:
            os.close(descriptor)
