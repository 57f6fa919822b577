"""Journals of the request store: one JSON line per completion, appended when it arrives.

    {"key":"<64 digits>","sum":"<8 digits>","near":"<id of a problem, or empty>","record":{...}}

`sum` is the CRC-32 of all other bytes of the line. In lines of version 0.2 it is named `crc` and covers the record
only; lines of version 0.1 have neither `crc` nor `near`. Both have the request in their record, from which the key is
checked.

A journal has one writer, which holds a lock on it. Lines are only appended, so a killed writer leaves at most one
incomplete line, at the end of its file. Damaged bytes are skipped: reading goes on at the next valid line.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import socket
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

import orjson

from tracefactory.core.files import TEMPORARY
from tracefactory.core.keys import messages_digest, model_digest, request_key, request_key_v1

PREFIX, SUFFIX = "journal-", ".jsonl"
_LINE = re.compile(rb'\{"key":"([0-9a-f]{64})","(sum|crc|record)":')
_KEY_END, _SUM = 72, slice(81, 89)  # after {"key":"<64 digits>, and after ","sum":"
_NEAR = re.compile(rb'","near":"([^"\\\n]*)","record":')
_V1_RECORD_AT = 83  # after ","record":


class Line(NamedTuple):
    """One valid line of a journal and its place there; `record` is JSON."""

    key: str
    near: str
    record: bytes
    format: str
    start: int
    length: int

    @property
    def key_version(self) -> int:
        """The version of the request's key (`core.keys`)."""
        return 1 if self.format == "record" else 2


class Unreadable(NamedTuple):
    """Bytes of a journal that are not a valid line."""

    start: int
    content: bytes
    why: str


@dataclass
class Journal:
    """A journal that this process writes. `torn` is set when half a line could not be removed from its end."""

    path: Path
    descriptor: int
    size: int = 0
    torn: bool = False

    @classmethod
    def create(cls, folder: Path) -> Journal:
        """Create a journal and lock it until it is closed.

        Raises:
            OSError: when it cannot be created.
        """
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{PREFIX}{socket.gethostname()}-{os.getpid()}-{uuid4().hex[:8]}{SUFFIX}"
        # It gets its name after it is locked, because a compaction would remove an unlocked journal.
        unnamed = folder / f"{TEMPORARY}{path.name}"
        descriptor = os.open(unnamed, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_APPEND, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            os.rename(unnamed, path)
        except OSError:
            os.close(descriptor)
            with suppress(OSError):
                unnamed.unlink()
            raise
        return cls(path, descriptor)

    def append(self, line: bytes) -> int:
        """Append one line and return its start.

        Raises:
            OSError: when it cannot be written completely. The file is as before unless `torn` is set.
        """
        start = self.size
        try:
            done = os.write(self.descriptor, line)
            while done < len(line):  # the rest fails too, and tells why
                more = os.write(self.descriptor, line[done:])
                if not more:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                done += more
        except OSError:
            try:
                os.ftruncate(self.descriptor, start)
            except OSError:
                self.torn = True
            raise
        self.size += len(line)
        return start

    def sync(self) -> None:
        """Sync the journal to disk."""
        os.fdatasync(self.descriptor)

    def close(self) -> None:
        """Close the journal and release its lock."""
        os.close(self.descriptor)


def encode(key: str, record: Mapping[str, Any], near: str) -> bytes:
    """Return the line of one completion."""
    head, middle = f'{{"key":"{key}","sum":"'.encode(), f'","near":"{near}","record":'.encode()
    text = orjson.dumps(record)
    covered = zlib.crc32(b"}", zlib.crc32(text, zlib.crc32(middle, zlib.crc32(head))))
    return b"".join((head, b"%08x" % covered, middle, text, b"}\n"))


def read_lines(path: Path, start: int = 0, *, closed: bool = False) -> Iterator[Line | Unreadable]:
    """Yield the lines of a journal from byte `start` on, and the damaged bytes between them.

    Args:
        path: the journal.
        start: the start of a line.
        closed: whether the journal has no writer. Its incomplete last line is then `Unreadable`; otherwise it may
            still be being written, and is left out. The keys of old lines are checked, too.

    Raises:
        FileNotFoundError: when the journal has been compacted.
    """
    damaged: Unreadable | None = None
    for one in _pieces(path, start, closed):
        if closed and isinstance(one, Line):
            one = _with_checked_key(one, path)
        if damaged is not None:
            if isinstance(one, Unreadable) and damaged.start + len(damaged.content) == one.start:
                damaged = damaged._replace(content=damaged.content + one.content)  # adjacent bytes are one damage
                continue
            yield damaged
            damaged = None
        if isinstance(one, Unreadable):
            damaged = one
        else:
            yield one
    if damaged is not None:
        yield damaged


def _with_checked_key(line: Line, path: Path) -> Line | Unreadable:
    try:
        check_key(line)
    except ValueError as error:
        with path.open("rb") as file:
            file.seek(line.start)
            return Unreadable(line.start, file.read(line.length), str(error))
    return line


def _pieces(path: Path, start: int, closed: bool) -> Iterator[Line | Unreadable]:
    with path.open("rb") as file:
        file.seek(start)
        for raw in file:
            try:
                yield parse(raw, start)
            except ValueError as error:
                if raw.endswith(b"\n"):
                    yield from _resynchronised(raw, start, str(error))
                elif closed:
                    yield from _resynchronised(raw, start, "an incomplete line at the end of the file")
            start += len(raw)


def read_line(path: Path, start: int, length: int, key: str) -> dict[str, Any]:
    """Return the record of one line, which must be that of `key`.

    Raises:
        ValueError: when the line is damaged.
        FileNotFoundError: when the journal has been compacted.
    """
    with path.open("rb") as file:
        file.seek(start)
        line = parse(file.read(length), start)
    if line.key != key:
        raise ValueError("another key than before")
    check_key(line)
    record: dict[str, Any] = orjson.loads(line.record)
    return record


def parse(raw: bytes, start: int = 0) -> Line:
    """Parse a line and verify its checksum. Its last byte, the newline, may be another.

    Raises:
        ValueError: when the line is damaged.
    """
    head = _LINE.match(raw)
    if head is None or raw[-2:-1] != b"}":
        raise ValueError("not a line of a journal")
    key, version = head[1].decode(), head[2].decode()
    if version == "record":
        record = raw[_V1_RECORD_AT:-2]
        json.loads(record)
        return Line(key, "", record, version, start, len(raw))
    near = _NEAR.match(raw, _SUM.stop)
    if near is None:
        raise ValueError("not a line of a journal")
    record = raw[near.end() : -2]
    covered = zlib.crc32(record) if version == "crc" else zlib.crc32(raw[_SUM.stop : -1], zlib.crc32(raw[: _SUM.start]))
    if raw[_SUM] != b"%08x" % covered:
        raise ValueError("wrong checksum")
    return Line(key, near[1].decode(), record, version, start, len(raw))


def check_key(line: Line) -> None:
    """Raise ValueError when the key of an old line, which no checksum covers, is not that of its request."""
    if line.format != "sum":
        check_request(line.key, orjson.loads(line.record))


def check_request(key: str, record: Any) -> None:
    """Raise ValueError when the record is none, or the request in it has another key than `key` in every version."""
    if not isinstance(record, dict):
        raise ValueError("not a record")
    request = record.get("request")
    if not isinstance(request, dict) or not {"model_identity", "messages", "params", "sample_index"} <= request.keys():
        return
    model, messages, params = request["model_identity"], request["messages"], request["params"]
    sample = request["sample_index"]
    if key != request_key(model_digest(model), messages_digest(messages), params, sample) and (
        key != request_key_v1(model, messages, params, sample)
    ):
        raise ValueError("its key does not belong to its request")


def _resynchronised(raw: bytes, start: int, why: str) -> Iterator[Line | Unreadable]:
    """Yield the valid lines in bytes without their newlines, e.g. half a line followed by a whole one."""
    starts = [0, *(head.start() for head in _LINE.finditer(raw, 1))]
    for begin, end in zip(starts, [*starts[1:], len(raw)], strict=True):
        piece = raw[begin:end]
        for candidate in (piece, piece + b"\n"):
            try:
                yield parse(candidate, start + begin)
            except ValueError:
                continue
            break
        else:
            if piece.strip(b"\n"):
                yield Unreadable(start + begin, piece, why)


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
