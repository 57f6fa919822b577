"""The request store: a permanent, content-addressed store of paid completions.

    requests/journal-<writer>.jsonl   appended when a completion arrives (`store.journals`)
    requests/<sha256>.parquet         closed journals, compacted, each with an index (`store.segments`)

The key depends only on the request, not on stage, shard, run, endpoint or number of workers. Completions survive the
death of any process; for power failures, they are synced to disk at most every second. Only the keys of journals are in
memory; a writer closes its journal at `ROTATE_BYTES`, and closed journals are compacted during runs.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import orjson

from tracefactory.core.errors import RunError
from tracefactory.store.journals import PREFIX, SUFFIX, Journal, closed_journals, keys_from, lines_of, read_line
from tracefactory.store.segments import Segment, prefixes_of, write_segment

ROTATE_BYTES = 32 << 20
COMPACT_BYTES = 64 << 20
_SEGMENT_BYTES = 256 << 20  # of records that are sorted in memory for one segment
_CACHE_BYTES = 64 << 20
_SYNC_EVERY_S = 1.0


class _Location(NamedTuple):
    """The location of a line in a journal."""

    file: str
    start: int
    length: int


class RequestStore:
    """Reads the completions in one state folder, and appends new ones.

    An instance belongs to one process. `get` and `present` include what other processes have written since.
    """

    def __init__(self, root: Path) -> None:
        self.folder = root / "requests"
        self._segments: dict[str, Segment] = {}
        self._lines: dict[str, _Location] = {}
        self._indexed_until: dict[str, int] = {}
        self._has_v1 = False
        self._journal: Journal | None = None
        self._synced = 0.0
        self._cache: OrderedDict[str, tuple[int, Mapping[str, Any]]] = OrderedDict()
        self._cached_bytes = 0

    def refresh(self) -> None:
        """Index what has been written since the last refresh."""
        journals = {path.name: path for path in self.folder.glob(f"{PREFIX}*{SUFFIX}")}
        if compacted := self._indexed_until.keys() - journals.keys():  # their keys are in a segment now
            self._lines = {key: location for key, location in self._lines.items() if location.file not in compacted}
            self._indexed_until = {name: end for name, end in self._indexed_until.items() if name not in compacted}
        for path in journals.values():
            self._index(path)
        # Segments last: a journal that was compacted since it was listed is in one of them.
        names = {path.name for path in self.folder.glob("[!.]*.parquet")}
        for name in names - self._segments.keys():
            self._segments[name] = Segment(self.folder / name)
            self._has_v1 |= self._segments[name].has_v1_keys

    @property
    def has_v1_keys(self) -> bool:
        """Whether some completions have keys of version 1, so that requests must be looked up by both keys."""
        return self._has_v1

    def present(self, keys: Iterable[str]) -> set[str]:
        """Return the `keys` with a stored completion. Keys in segments are compared by their first 64 bits."""
        self.refresh()
        wanted = list(keys)
        found = {key for key in wanted if key in self._lines}
        missing = [key for key in wanted if key not in found]
        prefixes = prefixes_of(missing)
        in_segment = np.zeros(len(missing), bool)
        for segment in self._segments.values():
            in_segment |= segment.rows_of(prefixes) >= 0
        return found.union(key for key, stored in zip(missing, in_segment.tolist(), strict=True) if stored)

    def __contains__(self, key: object) -> bool:
        """Return whether the completion is in a journal that this process has indexed; reads no file."""
        return key in self._lines

    def get(self, keys: Iterable[str]) -> dict[str, Mapping[str, Any]]:
        """Return the records (`request`, `completion`, `cost`, ...) of the `keys` that are stored."""
        wanted = list(dict.fromkeys(keys))
        self.refresh()
        for _ in range(3):
            try:
                return self._get(wanted)
            except FileNotFoundError:  # another process compacted a journal in the meantime
                self._forget()
                self.refresh()
        raise RunError(f"{self.folder} was compacted again during every attempt to read it")

    async def put(self, key: str, record: Mapping[str, Any], near: str = "") -> None:
        """Append one paid completion. When this returns, it survives the death of the process.

        `near` is the id of its problem; completions of one problem are stored next to each other.

        Raises:
            RunError: when it cannot be written.
        """
        if self._journal is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._journal = Journal.create(self.folder)
        journal = self._journal
        start, length = journal.append(key, record, near)
        self._lines.setdefault(key, _Location(journal.path.name, start, length))
        self._indexed_until[journal.path.name] = journal.size
        self._remember(key, length, record)
        if journal.size > ROTATE_BYTES:
            self._journal = None
            await asyncio.to_thread(journal.close)
        elif time.monotonic() - self._synced > _SYNC_EVERY_S:
            self._synced = time.monotonic()
            await asyncio.to_thread(journal.sync)

    def close(self) -> None:
        if self._journal is not None:
            self._journal.close()
            self._journal = None
        self._forget()

    def _forget(self) -> None:
        for segment in self._segments.values():
            segment.close()
        self._segments.clear()
        self._lines.clear()
        self._indexed_until.clear()

    def _index(self, path: Path) -> None:
        position = self._indexed_until.get(path.name, 0)
        try:
            if path.stat().st_size == position:
                return
            for key, start, length, is_v1 in keys_from(path, position):
                self._lines.setdefault(key, _Location(path.name, start, length))
                self._has_v1 |= is_v1
                position = start + length
        except FileNotFoundError:
            return  # compacted since it was listed; its segment exists already
        self._indexed_until[path.name] = position

    def _get(self, wanted: Sequence[str]) -> dict[str, Mapping[str, Any]]:
        found: dict[str, Mapping[str, Any]] = {}
        for key in wanted:
            if (cached := self._cache.get(key)) is not None:
                found[key] = cached[1]
            elif (location := self._lines.get(key)) is not None:
                found[key] = read_line(self.folder / location.file, location.start, location.length)
        for segment in self._segments.values():
            missing = [key for key in wanted if key not in found]
            if not missing:
                break
            rows = segment.rows_of(prefixes_of(missing))
            by_row = {int(row): key for row, key in zip(rows, missing, strict=True) if row >= 0}
            for row, key, record in segment.read(sorted(by_row)):
                if key == by_row[row]:  # the index compares only prefixes
                    found[key] = orjson.loads(record)
        return found

    def _remember(self, key: str, size: int, record: Mapping[str, Any]) -> None:
        """Cache the newest completions, which are read back soon to make rows."""
        self._cache[key] = (size, record)
        self._cached_bytes += size
        while self._cached_bytes > _CACHE_BYTES:
            _, (dropped, _) = self._cache.popitem(last=False)
            self._cached_bytes -= dropped


def compact(root: Path, *, at_least: int = COMPACT_BYTES) -> int:
    """Compact closed journals into segments if they have `at_least` bytes; return the number of compacted journals.

    This is safe while other processes read and write: a segment is written before its journals are removed, and
    journals in use are skipped.
    """
    folder = root / "requests"
    with closed_journals(folder) as journals:
        sizes = {path: path.stat().st_size for path in journals}
        if sum(sizes.values()) < max(at_least, 1):
            return 0
        batch: list[Path] = []
        for path in journals:
            batch.append(path)
            if sum(sizes[one] for one in batch) >= _SEGMENT_BYTES:
                _compact(folder, batch)
                batch = []
        _compact(folder, batch)
        return len(journals)


def _compact(folder: Path, journals: Sequence[Path]) -> None:
    lines = {line.key: line for path in journals for line in lines_of(path)}
    if lines:
        records = [(line.near, line.key, line.record) for line in lines.values()]
        write_segment(folder, records, {line.key_version for line in lines.values()})
    for path in journals:
        path.unlink()
