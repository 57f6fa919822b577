"""Journals of the request store: one JSON line per completion, appended when it arrives.

    {"key":"<64 digits>","crc":"<8 digits>","near":"<id of a problem, or empty>","record":{...}}

A journal has one writer, which holds a lock on it. A line is written by one `write`, so a killed writer leaves at most
one incomplete line, at the end of its file; readers ignore it. Lines of version 1 have neither `crc` nor `near`.
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
_KEY = slice(8, 72)  # after {"key":"
_CRC = slice(81, 89)  # after ","crc":"
_NEAR_AT = 99  # after ","near":"
_V1_RECORD_AT = 83  # after ","record":
_END = b"}\n"


class Line(NamedTuple):
    """One parsed line of a journal; `record` is JSON."""

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
        """Create a journal and lock it until it is closed."""
        path = folder / f"{PREFIX}{socket.gethostname()}-{os.getpid()}-{uuid4().hex[:8]}{SUFFIX}"
        # It gets its name after it is locked, because a compaction would remove an unlocked journal.
        unnamed = folder / f"{TEMPORARY}{path.name}"
        descriptor = os.open(unnamed, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_APPEND, 0o644)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        os.rename(unnamed, path)
        return cls(path, descriptor)

    def append(self, key: str, record: Mapping[str, Any], near: str) -> tuple[int, int]:
        """Append one completion and return the start and the length of its line.

        Raises:
            RunError: when it cannot be written completely; then the file is unchanged.
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
            raise RunError(f"{self.path}: a completion could not be written completely: the disk is full")
        location = self.size, len(line)
        self.size += len(line)
        return location

    def sync(self) -> None:
        """Sync the journal to disk."""
        os.fdatasync(self.descriptor)

    def close(self) -> None:
        self.sync()
        os.close(self.descriptor)


def keys_from(path: Path, start: int) -> Iterator[tuple[str, int, int, bool]]:
    """Yield (key, start, length, whether of version 1) of the complete lines of a journal from byte `start` on."""
    with path.open("rb") as file:
        file.seek(start)
        for line in file:
            if not line.endswith(b"\n"):
                return  # incomplete, or still being written
            yield line[_KEY].decode(), start, len(line), _is_v1(line)
            start += len(line)


def read_line(path: Path, start: int, length: int) -> dict[str, Any]:
    """Return the record of one line.

    Raises:
        RunError: when the line is damaged.
        FileNotFoundError: when the journal has been compacted.
    """
    with path.open("rb") as file:
        file.seek(start)
        raw = file.read(length)
    try:
        line = parse(raw)
        record: dict[str, Any] = orjson.loads(line.record)
    except ValueError as error:
        raise RunError(f"{path}: the line at byte {start} is damaged ({error})") from error
    return record


def lines_of(path: Path) -> Iterator[Line]:
    """Yield the complete lines of a journal.

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
    """Parse a line.

    Raises:
        ValueError: when the line is damaged.
    """
    if not raw.startswith(b'{"key":"') or not raw.endswith(_END):
        raise ValueError("not a line of a journal")
    key = raw[_KEY].decode("ascii")
    if _is_v1(raw):
        record = raw[_V1_RECORD_AT : -len(_END)]
        json.loads(record)
        return Line(key, "", record, 1)
    near_end = raw.index(b'"', _NEAR_AT)
    record = raw[near_end + len(b'","record":') : -len(_END)]
    if f"{zlib.crc32(record):08x}".encode() != raw[_CRC]:
        raise ValueError("wrong checksum")
    return Line(key, raw[_NEAR_AT:near_end].decode("ascii"), record, 2)


def _is_v1(line: bytes) -> bool:
    return line[72:81] != b'","crc":"'


@contextmanager
def closed_journals(folder: Path) -> Iterator[list[Path]]:
    """Yield the journals without a writer, locked against another compaction."""
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
