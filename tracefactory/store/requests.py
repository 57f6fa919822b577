"""The request store: one entry per paid completion, kept for good and found by content.

    requests/journal-<writer>.jsonl   appended the moment a completion arrives; one file per writing process
    requests/segment-<time>.parquet   closed journals, compacted; in the order they were paid, so that what one shard
                                      asked for lies together

The key is that of the request alone: no stage, shard, run, endpoint or worker count. A line is one `write`, so a killed
writer leaves at most one torn line, at the end of its own file; readers ignore it. Completions survive the death of any
process; against a power cut they are synced to disk at most every second.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any
from uuid import uuid4

import pyarrow as pa
import pyarrow.parquet as pq

from tracefactory.core.errors import RunError
from tracefactory.core.files import whole_file

_HEAD = '{"key":"'
_KEY_AT = slice(len(_HEAD), len(_HEAD) + 64)
_MIDDLE = '","record":'
_END = "}\n"
_GROUP = 256  # records per row group: what is read to get at one of them
_SYNC_EVERY_S = 1.0
COMPACT_BYTES = 64 << 20
SEGMENT_SCHEMA = pa.schema(
    [pa.field("key", pa.string(), nullable=False), pa.field("record", pa.string(), nullable=False)]
)


@dataclass(frozen=True)
class _Place:
    """Where one record lies: bytes of a journal, or a row of a segment's row group."""

    file: str
    start: int  # byte offset, or row group
    length: int  # bytes, or row in the group


class RequestStore:
    """Reads every completion ever paid for in one state folder, and appends new ones.

    One instance belongs to one process. `get` and `keys` see what other processes have written since.
    """

    def __init__(self, root: Path) -> None:
        self.folder = root / "requests"
        self.folder.mkdir(parents=True, exist_ok=True)
        self._places: dict[str, _Place] = {}
        self._read_until: dict[str, int] = {}
        self._journal: int | None = None
        self._journal_name = ""
        self._journal_size = 0
        self._synced = 0.0

    def refresh(self) -> None:
        """Index what has been written since the last look."""
        for path in sorted(self.folder.glob("segment-*.parquet")):
            if path.name not in self._read_until:
                self._index_segment(path)
        for path in sorted(self.folder.glob("journal-*.jsonl")):
            self._index_journal(path)

    def present(self, keys: Iterable[str]) -> set[str]:
        """Return those of `keys` that have been paid for."""
        self.refresh()
        return {key for key in keys if key in self._places}

    def __contains__(self, key: object) -> bool:
        """Tell whether this process has seen the completion; looks at no file."""
        return key in self._places

    def get(self, keys: Iterable[str]) -> dict[str, Mapping[str, Any]]:
        """Return the stored records (`request`, `completion`, `cost`, ...) of those of `keys` that are there."""
        keys = list(keys)
        self.refresh()
        for _ in range(3):
            wanted = {key: self._places[key] for key in keys if key in self._places}
            try:
                return self._read(wanted)
            except FileNotFoundError:  # compacted by another process between looking and reading
                self._places.clear()
                self._read_until.clear()
                self.refresh()
        raise RunError(f"{self.folder} changes faster than it can be read")

    async def put(self, key: str, record: Mapping[str, Any]) -> None:
        """Append one paid completion. When this returns it survives the death of the process."""
        line = (_HEAD + key + _MIDDLE + json.dumps(record, ensure_ascii=True) + _END).encode()
        journal = self._open_journal()
        if os.write(journal, line) != len(line):
            raise RunError(f"{self.folder}: a completion could not be written whole (is the disk full?)")
        self._places.setdefault(key, _Place(self._journal_name, self._journal_size, len(line)))
        self._journal_size += len(line)
        self._read_until[self._journal_name] = self._journal_size
        if time.monotonic() - self._synced > _SYNC_EVERY_S:
            self._synced = time.monotonic()
            await asyncio.to_thread(os.fdatasync, journal)

    def close(self) -> None:
        if self._journal is not None:
            os.fdatasync(self._journal)
            os.close(self._journal)
            self._journal = None

    def _open_journal(self) -> int:
        """Open this process's own journal, locked for as long as it may still be written."""
        if self._journal is None:
            self._journal_name = f"journal-{socket.gethostname()}-{os.getpid()}-{uuid4().hex[:8]}.jsonl"
            flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_APPEND
            self._journal = os.open(self.folder / self._journal_name, flags, 0o644)
            fcntl.flock(self._journal, fcntl.LOCK_EX)
        return self._journal

    def _index_journal(self, path: Path) -> None:
        position = self._read_until.get(path.name, 0)
        try:
            if path.stat().st_size == position:
                return
            with path.open("rb") as file:
                file.seek(position)
                for line in file:
                    if not line.endswith(b"\n"):
                        break  # torn, or still being written
                    self._places.setdefault(line[_KEY_AT].decode(), _Place(path.name, position, len(line)))
                    position += len(line)
        except FileNotFoundError:
            return  # compacted since it was listed; its segment is indexed at the next look
        self._read_until[path.name] = position

    def _index_segment(self, path: Path) -> None:
        file = pq.ParquetFile(path)
        for group in range(file.num_row_groups):
            for row, key in enumerate(file.read_row_group(group, columns=["key"])["key"].to_pylist()):
                self._places.setdefault(key, _Place(path.name, group, row))
        self._read_until[path.name] = 0

    def _read(self, wanted: Mapping[str, _Place]) -> dict[str, Mapping[str, Any]]:
        found: dict[str, Mapping[str, Any]] = {}
        by_file: dict[str, list[tuple[_Place, str]]] = {}
        for key, place in wanted.items():
            by_file.setdefault(place.file, []).append((place, key))
        for name, places in by_file.items():
            places.sort(key=lambda one: (one[0].start, one[0].length))
            reader = _read_segment if name.startswith("segment-") else _read_journal
            found.update(reader(self.folder / name, places))
        return found


def _read_journal(path: Path, places: list[tuple[_Place, str]]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    with path.open("rb") as file:
        for place, key in places:
            file.seek(place.start)
            line = file.read(place.length)
            try:
                yield key, json.loads(line)["record"]
            except ValueError as error:
                raise RunError(f"{path}: the line at byte {place.start} is damaged ({error})") from error


def _read_segment(path: Path, places: list[tuple[_Place, str]]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    file = pq.ParquetFile(path)
    group, records = -1, pa.chunked_array([], pa.string())
    for place, key in places:
        if place.start != group:
            group = place.start
            records = file.read_row_group(group, columns=["record"])["record"]
        yield key, json.loads(records[place.length].as_py())


def compact(root: Path, *, at_least: int = COMPACT_BYTES) -> int:
    """Turn journals nobody writes any more into one Parquet segment when they hold `at_least` bytes.

    Returns the number of journals compacted. Safe beside running readers and writers: the segment is in place before
    the journals go, and a journal in use is left alone.
    """
    folder = root / "requests"
    with _closed_journals(folder) as journals:
        if sum(path.stat().st_size for path in journals) < max(at_least, 1):
            return 0
        name = f"segment-{time.time_ns():020d}-{uuid4().hex[:8]}.parquet"
        with (
            whole_file(folder / name) as temporary,
            pq.ParquetWriter(temporary, SEGMENT_SCHEMA, compression="zstd") as writer,
        ):
            lines = chain.from_iterable(map(_whole_lines, journals))
            while batch := list(islice(lines, _GROUP)):
                keys = [line[_KEY_AT] for line in batch]
                records = [line[_KEY_AT.stop + len(_MIDDLE) : -len(_END)] for line in batch]
                writer.write_table(pa.Table.from_pydict({"key": keys, "record": records}, schema=SEGMENT_SCHEMA))
        for path in journals:
            path.unlink()
        return len(journals)


def _whole_lines(path: Path) -> Iterator[str]:
    with path.open(encoding="ascii") as file:
        yield from (line for line in file if line.endswith("\n"))


@contextmanager
def _closed_journals(folder: Path) -> Iterator[list[Path]]:
    """Yield the journals whose writer is gone, locked against a second compaction."""
    held: list[tuple[Path, int]] = []
    for path in sorted(folder.glob("journal-*.jsonl")):
        descriptor = os.open(path, os.O_RDONLY)
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
