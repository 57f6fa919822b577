"""Segments of a shared state that were merged into bigger ones, as every reader has to know them.

    retired/<hour>/<sha256>.json                          one merge, named by its content
    requests/shared-<digest of the URL>/<sha256>.retired  the same, once it was fetched

A merge is put after the merged segment and its index. From then on readers use the merged segment, and those who have
an index of a small one go on using it; the small ones are deleted a day later (`store.shared.compaction`).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from tracefactory.core.files import whole_file
from tracefactory.store.indexes import MappedIndex
from tracefactory.store.shared.hours import HourlyObjects
from tracefactory.store.shared.objects import AT_ONCE, Objects

FOLDER = "retired"
SUFFIX = ".retired"
_STEM = re.compile("[0-9a-f]{64}")


class Merge(NamedTuple):
    """A segment and those that it replaces, by the digests in their names."""

    into: str
    segments: tuple[str, ...]

    def encoded(self) -> bytes:
        """Return the content of its object."""
        return json.dumps({"into": self.into, "segments": sorted(self.segments)}).encode()

    @property
    def name(self) -> str:
        """The digest in the name of its object."""
        return hashlib.sha256(self.encoded()).hexdigest()


def decoded(content: bytes, stem: str) -> Merge:
    """Return a merge from the content of its object.

    Raises:
        ValueError: when it is not what its name says, or names nothing that can be merged.
    """
    if hashlib.sha256(content).hexdigest() != stem:
        raise ValueError("its content has another digest")
    found = json.loads(content)
    if not isinstance(found, dict) or not isinstance(found.get("segments"), list):
        raise ValueError("it is no merge")
    one = Merge(found.get("into", ""), tuple(found["segments"]))
    stems = (one.into, *one.segments)
    if not all(isinstance(name, str) and _STEM.fullmatch(name) for name in stems) or one.into in one.segments:
        raise ValueError("it names no segments, or one that replaces itself")
    return one


class Retired:
    """The merges of a shared state; use it from one thread.

    Args:
        folder: the folder for the indexes here.
        objects: the shared state.
    """

    def __init__(self, folder: Path, objects: Objects) -> None:
        self.folder, self.objects = folder, objects
        self.merges: dict[str, tuple[str, Merge]] = {}
        """Merges with their hours, by the digest in their names."""
        self._listed = HourlyObjects(objects, FOLDER)
        self._into: dict[str, set[str]] = {}

    def pull(self) -> None:
        """Fetch the merges that are new. One that is damaged is left out: what it replaces goes on being used.

        Raises:
            Unreachable: when the shared state cannot be asked.
        """
        new = {one.stem: one for one in self._listed.new() if one.stem not in self.merges}
        with ThreadPoolExecutor(AT_ONCE) as pool:
            contents = pool.map(self._content, new, (one.name for one in new.values()))
            for one, content in zip(new.values(), contents, strict=True):
                try:
                    merge = decoded(content, one.stem)
                except (ValueError, RecursionError):
                    continue
                self.merges[one.stem] = (one.hour, merge)
                for segment in merge.segments:
                    self._into.setdefault(segment, set()).add(merge.into)

    def replacing(self, stem: str) -> set[str]:
        """Return the segments that have everything of a retired one and are not retired; empty for any other."""
        found, seen, waiting = set(), {stem}, list(self._into.get(stem, ()))
        while waiting:
            if (one := waiting.pop()) in seen:
                continue
            seen.add(one)
            if further := self._into.get(one):
                waiting += further
            else:
                found.add(one)
        return found

    def is_replaced(self, stem: str) -> bool:
        """Return whether the index of a segment that replaces another one is here."""
        return any(self._index(one).exists() for one in self.replacing(stem))

    def drop(self, stems: Iterable[str]) -> None:
        """Delete what is here of segments whose replacement is here; their other files go last."""
        for stem in stems:
            if self.is_replaced(stem):
                self._index(stem).unlink(missing_ok=True)
                self._index(stem).with_suffix(".parquet").unlink(missing_ok=True)

    def replace(self, stem: str) -> bool:
        """Fetch the index that replaces that of a segment which is gone from the shared state.

        Returns:
            Whether there is one, so that the segment is not lost.

        Raises:
            Unreachable: when the shared state cannot be asked.
        """
        self.pull()
        wanted = self.replacing(stem)
        names: Mapping[str, str] = {}
        if wanted and not self.is_replaced(stem):
            names = {one.stem: one.name for one in HourlyObjects(self.objects, "indexes").new() if one.stem in wanted}
        for one, name in names.items():
            fetch_index(self.objects, name, self._index(one))
        self.drop([stem])
        return not self._index(stem).exists()

    def _content(self, stem: str, name: str) -> bytes:
        path = self.folder / f"{stem}{SUFFIX}"
        if path.exists():
            return path.read_bytes()
        try:
            content, _ = self.objects.get(name)
            decoded(content, stem)
        except (FileNotFoundError, ValueError, RecursionError):
            return b""
        with whole_file(path) as temporary:
            temporary.write_bytes(content)
        return content

    def _index(self, stem: str) -> Path:
        return self.folder / f"{stem}.index"


def fetch_index(objects: Objects, name: str, path: Path) -> bool:
    """Fetch the index of a segment, and return whether it is whole; one that is not is not written.

    Args:
        objects: the shared state.
        name: its object.
        path: its file here.

    Raises:
        Unreachable: when the shared state cannot be asked.
    """
    try:
        content, _ = objects.get(name)
        with whole_file(path) as temporary:
            temporary.write_bytes(content)
            MappedIndex(temporary).close()
    except (FileNotFoundError, ValueError):
        return False
    return True
