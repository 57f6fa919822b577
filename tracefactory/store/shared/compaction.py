"""Merging small segments of a shared state into bigger ones, so that readers look into fewer of them.

The merged segment is put, then its index, and both are read back; then the merge itself (`store.shared.retired`), which
tells readers to use it. The small segments are deleted `GRACE_S` later by the clock of the store, after what replaces
them was read once more. A kill between any two steps leaves every completion readable, at worst twice, and the next
merge goes on. One machine at a time does this, which holds a lease; if two do after all, both merges hold what they
say, and nothing is deleted but what was found in another segment.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from tracefactory.core.files import TEMPORARY
from tracefactory.store.indexes import MappedIndex, Prefixes
from tracefactory.store.segments import Segment, metadata_of, write_segment
from tracefactory.store.shared.hours import HourlyObjects, end_of, hour_of
from tracefactory.store.shared.objects import Objects, put_whole
from tracefactory.store.shared.reading import fetch_segment, put_segment, segment_name
from tracefactory.store.shared.retired import FOLDER, Merge, Retired, fetch_index

MERGED_BYTES = 256 << 20
"""Records of about so many bytes, before compression, are merged into one segment; they are in memory meanwhile."""
FEWEST = 64
"""Fewer small segments than this are left as they are."""
GRACE_S = 24 * 3600.0
"""Merged segments are deleted so long after their merge: a reader that was away for longer asks for the merges."""


class _NotHeldError(Exception):
    """The lease was lost, or the run ends."""


class Compaction:
    """Merges the segments of a shared state; use it from one thread.

    Args:
        folder: the folder for the indexes here, to which all have been fetched.
        objects: the shared state.
        is_held: whether the lease is still held; asked before every step that others see.
    """

    def __init__(self, folder: Path, objects: Objects, is_held: Callable[[], bool] = lambda: True) -> None:
        self.folder, self.objects, self.is_held = folder, objects, is_held
        self._retired = Retired(folder, objects)
        self._listed = HourlyObjects(objects, "indexes")
        self._names: dict[str, str] = {}  # the objects of all indexes, by the digest of the segment
        self._bytes: dict[str, int] = {}  # of the records of a segment
        self._damaged: set[str] = set()
        self._whole: dict[str, Prefixes] = {}  # what was read back, with its keys

    def is_due(self, now: float) -> bool:
        """Return whether there is something to merge or to delete.

        Args:
            now: Unix seconds of the store's clock.

        Raises:
            Unreachable: when the shared state cannot be asked.
        """
        self._look()
        return len(self._group()) > 0 or any(stem in self._names for stem in self._retired_before(now))

    def merge(self, now: float) -> int:
        """Merge small segments into one, the oldest first, and return how many; 0 when there are too few.

        Args:
            now: Unix seconds of the store's clock.

        Raises:
            Unreachable: when the shared state cannot be asked.
        """
        self._look()
        try:
            return self._merge(self._group(), now)
        except _NotHeldError:
            return 0

    def delete(self, now: float) -> int:
        """Delete what was merged long ago and is whole in the segment that replaces it; return the number of segments.

        Args:
            now: Unix seconds of the store's clock.

        Raises:
            Unreachable: when the shared state cannot be asked.
        """
        self._look()
        self._whole.clear()
        deleted = 0
        for stem in self._retired_before(now):
            if stem not in self._names or not self._is_elsewhere(stem):
                continue
            if not self.is_held():
                break
            # The index goes last: while it is listed, it is known that the segment is still to be deleted.
            self.objects.delete(segment_name(stem))
            self.objects.delete(self._names.pop(stem))
            deleted += 1
        return deleted

    def _retired_before(self, now: float) -> list[str]:
        """Return the segments that were merged so long ago that no reader expects them."""
        merges = self._retired.merges.values()
        return [stem for hour, merge in merges if now >= end_of(hour) + GRACE_S for stem in merge.segments]

    def _group(self) -> list[str]:
        """Return the oldest small segments, as many as one takes; none when there are too few."""
        here, group, size = {path.stem for path in self.folder.glob("[!.]*.index")}, [], 0
        for stem in self._names:
            if stem in here and self._is_small(stem):
                group.append(stem)
                size += self._bytes[stem]
                if size >= MERGED_BYTES:
                    return group
        return group if len(group) >= FEWEST else []

    def _look(self) -> None:
        self._retired.pull()
        self._names.update((one.stem, one.name) for one in self._listed.new())

    def _is_small(self, stem: str) -> bool:
        """Return whether a segment is to be merged."""
        if stem not in self._bytes:
            self._bytes[stem] = self._bytes_of(stem)
        usable = stem not in self._damaged and not self._retired.replacing(stem)
        return usable and self._bytes[stem] <= MERGED_BYTES // 2

    def _bytes_of(self, stem: str) -> int:
        try:
            index = MappedIndex(self.folder / f"{stem}.index")
            footer = index.footer
            index.close()
            found = metadata_of(footer)
        except (FileNotFoundError, ValueError):
            self._damaged.add(stem)
            return 0
        return sum(found.row_group(number).total_byte_size for number in range(found.num_row_groups))

    def _merge(self, group: Sequence[str], now: float) -> int:
        with tempfile.TemporaryDirectory(dir=self.folder, prefix=TEMPORARY) as temporary:
            found: dict[str, tuple[str, str, bytes]] = {}
            versions: set[int] = set()
            merged: list[str] = []
            for stem in group:
                self._check()
                if (read := self._read(Path(temporary) / f"{stem}.parquet", len(merged))) is None:
                    self._damaged.add(stem)  # whoever has its records puts them again, under another name perhaps
                    continue
                records, own_versions = read
                for one in records:
                    found.setdefault(one[1], one)
                versions |= own_versions
                merged.append(stem)
            if len(merged) < 2:
                return 0
            path = write_segment(Path(temporary), list(found.values()), versions)
            self._check()
            put_segment(self.objects, path)
            self._look()
        into = path.stem
        if into not in self._names or not self._is_whole(into):
            self._damaged.update(merged)  # not tried again by this process
            return 0
        merge = Merge(into, tuple(one for one in merged if one != into))
        content = merge.encoded()
        self._check()
        put_whole(self.objects, f"{FOLDER}/{hour_of(now)}/{merge.name}.json", content)
        self._retired.pull()
        return len(merge.segments)

    def _read(self, path: Path, number: int) -> tuple[list[tuple[str, str, bytes]], set[int]] | None:
        """Return (near, key, record) of a segment in its order, and the versions of its keys; None if it is damaged."""
        try:
            fetch_segment(self.objects, path)
            segment = Segment(path, lambda damage: None, writes=False)
        except (FileNotFoundError, ValueError):
            return None
        try:
            records = [(f"{number:09d}-{row:09d}", key, record) for row, key, record in segment.whole_rows()]
            return records, segment.key_versions
        finally:
            segment.close()
            path.unlink()

    def _is_elsewhere(self, stem: str) -> bool:
        """Return whether a segment that replaces another one is whole and has all its keys."""
        with tempfile.TemporaryDirectory(dir=self.folder, prefix=TEMPORARY) as temporary:
            keys = self._keys(stem, Path(temporary))
        if keys is None:
            return False
        return any(
            self._is_whole(one) and bool(np.isin(keys, self._whole[one]).all())
            for one in sorted(self._retired.replacing(stem))
        )

    def _is_whole(self, stem: str) -> bool:
        """Return whether a segment and its index are in the shared state as they were put."""
        if stem not in self._whole and stem in self._names:
            with tempfile.TemporaryDirectory(dir=self.folder, prefix=TEMPORARY) as temporary:
                try:
                    fetch_segment(self.objects, Path(temporary) / f"{stem}.parquet")
                except (FileNotFoundError, ValueError):
                    return False
                if (keys := self._keys(stem, Path(temporary))) is not None:
                    self._whole[stem] = keys
        return stem in self._whole

    def _keys(self, stem: str, folder: Path) -> Prefixes | None:
        """Return the keys in the index of a segment in the shared state; None when it is missing or damaged."""
        path = folder / f"{stem}.index"
        if not fetch_index(self.objects, self._names[stem], path):
            return None
        index = MappedIndex(path)
        keys = index.prefixes.copy()
        index.close()
        return keys

    def _check(self) -> None:
        if not self.is_held():
            raise _NotHeldError
