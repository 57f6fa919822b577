"""Completions of one state folder and a shared state: new ones are put there, and the indexes of all others fetched.

New completions are put as a segment when they have 8 MB or the oldest is 30 s old, so that a machine that is lost with
its disk costs no more than these. Nothing about what was put is kept beside the indexes: what a folder has and no index
knows is put by the next run.
"""

from __future__ import annotations

import fcntl
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple
from uuid import uuid4

import numpy as np

from tracefactory.core.files import TEMPORARY
from tracefactory.store.indexes import MappedIndex, prefixes_of
from tracefactory.store.journals import PREFIX, SUFFIX, Line, read_lines
from tracefactory.store.segments import Segment, write_segment
from tracefactory.store.shared.holding import Holding
from tracefactory.store.shared.hours import HourlyObjects
from tracefactory.store.shared.objects import AT_ONCE, Objects, Unreachable
from tracefactory.store.shared.reading import BAD, cache_folder, put_segment, segment_name
from tracefactory.store.shared.retired import Retired, fetch_index

SEGMENT_BYTES = 8 << 20
"""Records of so many bytes are put at once."""
SEGMENT_S = 30.0
"""No completion waits longer than this to be put."""
HOLD_BYTES = 64 << 20
"""While so many bytes could not be put, no request is sent."""
HOLD_S = 300.0
"""While nothing could be put for so long, no request is sent."""
RETRY_S = 5.0


class _Record(NamedTuple):
    near: str
    key: str
    record: bytes
    key_version: int


class SharedCompletions:
    """The completions of a state folder and of a shared state; use it from one thread.

    Args:
        root: the state folder.
        objects: the shared state.
    """

    def __init__(self, root: Path, objects: Objects) -> None:
        self.objects = objects
        self.requests = root / "requests"
        self.folder = cache_folder(self.requests, objects.url)
        self._lock = (self.folder / "upload.lock").open("a")
        self._holding = Holding(self.folder / f"hold-{uuid4().hex}")
        self._indexes: dict[str, MappedIndex] = {}
        self._listed = HourlyObjects(objects, "indexes")
        self._retired = Retired(self.folder, objects)
        self._read_to: dict[str, int] = {}  # by journal
        self._looked_through: set[str] = set()  # segments
        self._waiting: dict[str, _Record] = {}  # by key
        self._bytes = 0
        self._oldest = 0.0  # since when the oldest waits
        self._failing_since: float | None = None
        self._next_try = 0.0

    def pull(self) -> int:
        """Fetch the indexes that are new in the shared state, all of them the first time; return their number.

        An index that is damaged there is left out; whoever has its records puts it again.

        Raises:
            Unreachable: when the shared state cannot be asked.
        """
        self._retired.pull()
        # Of merges whose segment an earlier call brought: who lists the indexes now would find neither otherwise.
        self._retired.drop(path.stem for path in self.folder.glob("[!.]*.index"))
        new: dict[Path, str] = {}
        old: dict[Path, str] = {}
        for one in self._listed.new():
            path = self.folder / f"{one.stem}.index"
            if not path.exists() and not path.with_suffix(BAD).exists():
                (old if self._retired.replacing(one.stem) else new)[path] = one.name
        fetch = partial(fetch_index, self.objects)
        with ThreadPoolExecutor(AT_ONCE) as pool:
            found = sum(pool.map(fetch, new.values(), new))
            # Of a merge whose segment is not usable, those that it replaces are.
            old = {path: name for path, name in old.items() if not self._retired.is_replaced(path.stem)}
            found += sum(pool.map(fetch, old.values(), old))
        return found

    def push(self, *, flush: bool = False) -> None:
        """Put new completions when there are enough or they are old enough; with `flush`, all of them.

        While this fails, requests are held back (`Holding`), and it is tried again by later calls.

        Raises:
            Unreachable: with `flush`, when they could not be put.
        """
        if time.monotonic() < self._next_try and not flush:
            return
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        try:
            self._push(flush=flush)
        except (Unreachable, OSError) as error:  # an OSError is one of this machine, such as a full disk
            now = time.monotonic()
            self._failing_since = self._failing_since or now
            self._next_try = now + RETRY_S
            self._hold(str(error), now - self._failing_since)
            if flush:
                raise Unreachable(str(error)) from error
        else:
            self._failing_since = None
            self._holding.end()
        finally:
            fcntl.flock(self._lock, fcntl.LOCK_UN)

    @property
    def unsent_bytes(self) -> int:
        """The bytes of journals and of what waits in memory that are not put yet."""
        found = self._bytes
        for path in self._journals():
            with suppress(FileNotFoundError):  # compacted since it was listed
                found += max(0, path.stat().st_size - self._read_to.get(path.name, 0))
        return found

    def close(self) -> None:
        """Close the files."""
        for index in self._indexes.values():
            index.close()
        self._indexes.clear()
        self._holding.close()
        self._lock.close()

    def _push(self, *, flush: bool) -> None:
        self._load_indexes()
        for one in self._new():
            if not self._waiting:
                self._oldest = time.monotonic()
            self._waiting[one.key] = one
            self._bytes += len(one.record)
            if self._bytes >= SEGMENT_BYTES:
                self._put_segment()
        if self._waiting and (flush or time.monotonic() - self._oldest >= SEGMENT_S):
            self._put_segment()

    def _put_segment(self) -> None:
        self._load_indexes()  # another process of this machine may have put some of them
        unknown = self._unknown(list(self._waiting))
        records = [one for one, new in zip(self._waiting.values(), unknown, strict=True) if new]
        if records:
            with tempfile.TemporaryDirectory(dir=self.folder, prefix=TEMPORARY) as temporary:
                content = [(one.near, one.key, one.record) for one in records]
                path = write_segment(Path(temporary), content, {one.key_version for one in records})
                bad = self.folder / f"{path.stem}{BAD}"
                if bad.exists():
                    self.objects.delete(segment_name(path.stem))
                put_segment(self.objects, path)
                bad.unlink(missing_ok=True)
                path.with_suffix(".index").rename(self.folder / f"{path.stem}.index")
        self._waiting.clear()
        self._bytes = 0

    def _new(self) -> Iterator[_Record]:
        """Yield what the state folder has and the shared state does not."""
        journals = self._journals()
        self._read_to = {path.name: self._read_to.get(path.name, 0) for path in journals}
        for path in journals:
            lines, end = self._lines(path)
            while end > self._read_to[path.name]:
                yield from self._only_unknown(
                    [_Record(one.near, one.key, one.record, one.key_version) for one in lines]
                )
                self._read_to[path.name] = end  # only now, so that a failed put leaves nothing out
                lines, end = self._lines(path)
        for path in sorted(self.requests.glob("[!.]*.parquet")):
            if path.name not in self._looked_through:
                yield from self._only_unknown_of(path)
                self._looked_through.add(path.name)

    def _journals(self) -> list[Path]:
        return sorted(self.requests.glob(f"{PREFIX}*{SUFFIX}"))

    def _lines(self, path: Path) -> tuple[list[Line], int]:
        """Return the next lines of a journal, about as many as one segment takes, and where they end."""
        found, size, position = [], 0, self._read_to[path.name]
        try:
            for one in read_lines(path, position):
                if isinstance(one, Line):
                    found.append(one)
                    size, position = size + one.length, one.start + one.length
                else:  # the request store reports damaged bytes
                    position = one.start + len(one.content)
                if size >= SEGMENT_BYTES:
                    break
        except FileNotFoundError:  # compacted since it was listed: a segment has them
            return [], 0
        return found, position

    def _only_unknown_of(self, path: Path) -> Iterator[_Record]:
        try:
            segment = Segment(path, lambda damage: None, writes=False)
        except FileNotFoundError:
            return
        try:
            if self._mask(segment.index.prefixes).all():
                return
            version = min(segment.key_versions, default=2)
            batch = []
            for row, key, record in segment.whole_rows():
                batch.append(_Record(f"{row:09d}", key, record, version))
                if len(batch) == 512:
                    yield from self._only_unknown(batch)
                    batch = []
            yield from self._only_unknown(batch)
        finally:
            segment.close()

    def _only_unknown(self, records: Sequence[_Record]) -> Iterator[_Record]:
        unknown = self._unknown([one.key for one in records])
        for one, new in zip(records, unknown, strict=True):
            if new and one.key not in self._waiting:
                yield one

    def _unknown(self, keys: Sequence[str]) -> list[bool]:
        found: list[bool] = (~self._mask(prefixes_of(keys))).tolist()
        return found

    def _mask(
        self, prefixes: np.ndarray[tuple[int], np.dtype[np.uint64]]
    ) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
        """Return which of some keys the shared state has."""
        known = np.zeros(len(prefixes), bool)
        for index in self._indexes.values():
            if len(index.prefixes):
                at = np.minimum(np.searchsorted(index.prefixes, prefixes), len(index.prefixes) - 1)
                known |= index.prefixes[at] == prefixes
        return known

    def _load_indexes(self) -> None:
        """Open the indexes that were fetched or put since the last call, and close those of damaged segments."""
        names = {path.name for path in self.folder.glob("[!.]*.index")}
        for name in self._indexes.keys() - names:
            self._indexes.pop(name).close()
        for name in names - self._indexes.keys():
            try:
                self._indexes[name] = MappedIndex(self.folder / name)
            except ValueError:
                (self.folder / name).unlink(missing_ok=True)  # it is fetched again

    def _hold(self, why: str, failing_s: float) -> None:
        unsent = self.unsent_bytes
        if unsent >= HOLD_BYTES or failing_s >= HOLD_S:
            self._holding.begin(
                f"{unsent / 1e6:,.1f} MB of paid completions are only on this machine: {why}. No further request is "
                "sent until they are in the shared state; the run then goes on by itself"
            )
