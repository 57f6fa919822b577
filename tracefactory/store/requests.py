"""The request store: a permanent, content-addressed store of paid completions.

    requests/journal-<writer>.jsonl   appended when a completion arrives (`store.journals`)
    requests/<sha256>.parquet         closed journals, compacted, each with an index (`store.segments`)
    requests/shared-<digest>/         what a shared state has beside these (`store.shared.reading`)

The key depends only on the request, not on stage, shard, run, endpoint or number of workers. Completions survive the
death of any process; for power failures, they are synced to disk at most every second. Only the keys of journals are in
memory; a writer closes its journal when it is large, and closed journals are compacted during runs.

Damage is never an error here: a completion that cannot be read is not present, so its request is owed again, and the
damage is in `RequestStore.damage`.
"""

from __future__ import annotations

import errno
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from tracefactory.core.errors import RunError
from tracefactory.store.appending import Writer
from tracefactory.store.damage import Damage, set_aside
from tracefactory.store.indexes import prefixes_of
from tracefactory.store.journals import (
    PREFIX,
    SUFFIX,
    Line,
    Unreadable,
    closed_journals,
    read_line,
    read_lines,
)
from tracefactory.store.segments import Segment, write_segment
from tracefactory.store.shared.reading import SharedSegment, fetch_all

COMPACT_BYTES = 64 << 20
_SEGMENT_BYTES = 256 << 20  # of records that are sorted in memory for one segment
_CACHE_BYTES = 64 << 20
_SHARED_INDEXES = "shared-*/[!.]*.index"
_Found = TypeVar("_Found")
OWED = "its request is owed again"
"""The consequence of a completion that cannot be read."""


class _Location(NamedTuple):
    """The location of a line in a journal."""

    file: str
    start: int
    length: int


class RequestStore:
    """Reads the completions in one state folder, and appends new ones.

    An instance belongs to one process. `get` and `present` include what other processes have written since.

    Args:
        root: the state folder.
        free: bytes to leave free on its file system; `appending.FREE_BYTES` by default.
    """

    def __init__(self, root: Path, *, free: int | None = None) -> None:
        self.folder = root / "requests"
        self._segments: dict[str, Segment] = {}
        self._shared: dict[Path, SharedSegment] = {}
        self._lines: dict[str, _Location] = {}
        self._indexed_until: dict[str, int] = {}
        self._has_v1 = False
        self._writer = Writer(self.folder, self._written, free)
        self._cache: OrderedDict[str, tuple[int, Mapping[str, Any]]] = OrderedDict()
        self._cached_bytes = 0
        self._damage: dict[tuple[Path, str], Damage] = {}

    @property
    def damage(self) -> list[Damage]:
        """The damage that this instance has met."""
        return list(self._damage.values())

    @property
    def blocked(self) -> str:
        """One sentence for the user while no request may be sent: what could not be written, why, and what to do."""
        return self._writer.blocked

    @property
    def draining(self) -> bool:
        """Whether `reserve` raises `Interrupted` instead of waiting; `put` goes on."""
        return self._writer.draining

    @draining.setter
    def draining(self, draining: bool) -> None:
        self._writer.draining = draining

    def reserve(self, size: int) -> AbstractAsyncContextManager[None]:
        """Reserve space for the record of a request; entered before it is sent, and left after `put`.

        It waits while a completion cannot be written or while there is too little space on the file system.

        Args:
            size: bytes of the record in the worst case.

        Raises:
            Interrupted: when `draining` is set.
        """
        return self._writer.reserve(size)

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
        for name in sorted(names - self._segments.keys()):
            segment = self._segments[name] = Segment(self.folder / name, self._met)
            self._has_v1 |= segment.has_v1_keys
        self._refresh_shared()

    def _refresh_shared(self) -> None:
        """Look which segments a shared state has; the process that shares adds and removes their indexes meanwhile."""
        indexes = set(self.folder.glob(_SHARED_INDEXES))
        if gone := self._shared.keys() - indexes:  # damaged, or merged into one that may have come during this list
            indexes = set(self.folder.glob(_SHARED_INDEXES))
        for path in gone - indexes:
            del self._shared[path]  # another thread may still read it
        for path in indexes - self._shared.keys():
            try:
                shared = SharedSegment(path.with_suffix(".parquet"), self._met)
            except FileNotFoundError:  # removed since it was listed
                return self._refresh_shared()
            self._shared[path] = shared
            self._has_v1 |= shared.has_v1_keys
        return None

    @property
    def _all_segments(self) -> list[Segment]:
        """All segments; those whose records may have to be fetched are last."""
        return [*self._segments.values(), *self._shared.values()]

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
        for segment in self._all_segments:
            in_segment |= segment.rows_of(prefixes) >= 0
        return found.union(key for key, stored in zip(missing, in_segment.tolist(), strict=True) if stored)

    def __contains__(self, key: object) -> bool:
        """Return whether the completion is in a journal that this process has indexed; reads no file."""
        return key in self._lines

    def get(self, keys: Iterable[str]) -> dict[str, Mapping[str, Any]]:
        """Return the records (`request`, `completion`, `cost`, ...) of the `keys` that are stored."""
        wanted = list(dict.fromkeys(keys))
        return self._reading(lambda: self._get(wanted))

    def find(self, prefix: str) -> dict[str, Any]:
        """Return the records whose keys begin with `prefix`, of some hexadecimal digits, as they are stored."""

        def find() -> set[str]:
            found = {key for key in self._lines if key.startswith(prefix)}
            for segment in self._all_segments:
                found |= {key for _, key, _ in segment.read(segment.rows_from(prefix)) if key.startswith(prefix)}
            return found

        return dict(self.get(self._reading(find)))

    def _reading(self, read: Callable[[], _Found]) -> _Found:
        """Return what is read, again when a file was replaced by another one meanwhile."""
        self.refresh()
        for _ in range(3):
            try:
                return read()
            except FileNotFoundError:  # a journal was compacted, or a segment of a shared state merged into another
                self._forget()
                self.refresh()
        raise RunError(f"{self.folder} was compacted again during every attempt to read it")

    async def put(self, key: str, record: Mapping[str, Any], near: str = "") -> None:
        """Append one paid completion. When this returns, it survives the death of the process.

        While it cannot be written, it is kept in memory and written as soon as possible, also when this is cancelled;
        `blocked` then says why. `near` is the id of its problem; completions of one problem are stored next to each
        other.
        """
        length = await self._writer.append(key, record, near)
        self._remember(key, length, record)

    async def sync(self) -> None:
        """Return when everything that was put survives a power failure."""
        await self._writer.sync()

    def close(self) -> None:
        """Write what could not be written yet, and close all files.

        Raises:
            RunError: when paid completions still cannot be written; they are lost.
        """
        try:
            self._writer.close()
        finally:
            self._forget()

    def _forget(self) -> None:
        for segment in self._all_segments:
            segment.close()
        self._segments.clear()
        self._shared.clear()
        self._lines.clear()
        self._indexed_until.clear()

    def _index(self, path: Path) -> None:
        position = self._indexed_until.get(path.name, 0)
        try:
            if path.stat().st_size == position:
                return
            for one in read_lines(path, position):
                if isinstance(one, Unreadable):
                    self._met(_damaged_line(path, one.start, one.why))
                    position = one.start + len(one.content)
                    continue
                self._lines.setdefault(one.key, _Location(path.name, one.start, one.length))
                self._has_v1 |= one.key_version == 1
                position = one.start + one.length
        except FileNotFoundError:
            return  # compacted since it was listed; its segment exists already
        except OSError as error:
            raise RunError(f"{path} cannot be read: {error.strerror}") from error
        self._indexed_until[path.name] = position

    def _get(self, wanted: Sequence[str]) -> dict[str, Mapping[str, Any]]:
        found: dict[str, Mapping[str, Any]] = {}
        for key in wanted:
            if (cached := self._cache.get(key)) is not None:
                found[key] = cached[1]
            elif (location := self._lines.get(key)) is not None:
                path = self.folder / location.file
                try:
                    found[key] = read_line(path, location.start, location.length, key)
                except ValueError as error:
                    self._met(_damaged_line(path, location.start, str(error)))
                    del self._lines[key]
        _read_segments(self._segments.values(), wanted, found)
        if self._shared and len(found) < len(wanted):
            prefixes = prefixes_of([key for key in wanted if key not in found])
            holding = [one for one in self._shared.values() if (one.rows_of(prefixes) >= 0).any()]
            fetch_all(holding)
            _read_segments(holding, wanted, found)
        return found

    def _written(self, key: str, journal: str, start: int, length: int) -> None:
        self._lines.setdefault(key, _Location(journal, start, length))
        self._indexed_until[journal] = start + length

    def _met(self, damage: Damage) -> None:
        self._damage.setdefault((damage.path, damage.place), damage)

    def _remember(self, key: str, size: int, record: Mapping[str, Any]) -> None:
        """Cache the newest completions, which are read back soon to make rows."""
        self._cache[key] = (size, record)
        self._cached_bytes += size
        while self._cached_bytes > _CACHE_BYTES:
            _, (dropped, _) = self._cache.popitem(last=False)
            self._cached_bytes -= dropped


def _read_segments(segments: Iterable[Segment], wanted: Sequence[str], found: dict[str, Mapping[str, Any]]) -> None:
    """Add the records of the wanted keys that are in some segments to those found."""
    for segment in segments:
        missing = [key for key in wanted if key not in found]
        if not missing:
            break
        rows = segment.rows_of(prefixes_of(missing))
        by_row = {int(row): key for row, key in zip(rows, missing, strict=True) if row >= 0}
        for row, key, record in segment.read(sorted(by_row)):
            if key == by_row[row]:  # the index compares only prefixes
                found[key] = record


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
        try:
            for path in journals:
                batch.append(path)
                if sum(sizes[one] for one in batch) >= _SEGMENT_BYTES:
                    _compact(folder, batch)
                    batch = []
            _compact(folder, batch)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise RunError(f"{folder}: its journals could not be compacted: {error}") from error
            return len(journals) - len(batch)  # the journals stay as they are; the next compaction may have more space
        return len(journals)


def _compact(folder: Path, journals: Sequence[Path]) -> None:
    """Write the lines of some journals as a segment, and remove the journals. Damaged bytes are set aside."""
    lines: dict[str, Line] = {}
    for path in journals:
        for one in read_lines(path, closed=True):
            if isinstance(one, Unreadable):
                set_aside(folder, f"{path.name}-{one.start}", one.content)
            else:
                lines.setdefault(one.key, one)
    if lines:
        records = [(line.near, line.key, line.record) for line in lines.values()]
        write_segment(folder, records, {line.key_version for line in lines.values()})
    for path in journals:
        path.unlink()


def _damaged_line(path: Path, start: int, why: str) -> Damage:
    return Damage(path, f"byte {start}", why, OWED)
