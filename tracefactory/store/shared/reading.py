"""Reading completions of a shared state: their indexes are in the state folder, records are fetched when they are read.

requests/shared-<digest of the URL>/source.json      the URL
requests/shared-<digest of the URL>/<sha256>.index   the index of a segment of the shared state
requests/shared-<digest of the URL>/<sha256>.parquet the segment, once one of its records was read
requests/shared-<digest of the URL>/<sha256>.retired a merge of segments into one (`store.shared.retired`)
requests/shared-<digest of the URL>/<sha256>.bad     the index of a segment whose records are not what its name says
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache, cached_property
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from tracefactory.core.files import read_json, whole_file, write_json
from tracefactory.store.damage import Damage, reading
from tracefactory.store.indexes import Index, MappedIndex
from tracefactory.store.segments import SCHEMA, Segment, content_name, metadata_of
from tracefactory.store.shared.cloud import connect
from tracefactory.store.shared.hours import hour_of
from tracefactory.store.shared.objects import AT_ONCE, Objects, put_whole
from tracefactory.store.shared.retired import Retired

BAD = ".bad"
FETCH_BYTES = 512 << 20
"""Segments of about so many bytes are in memory at the same time while they are fetched."""
_RETIRING = threading.Lock()


def cache_folder(requests: Path, url: str) -> Path:
    """Return the folder for the indexes of a shared state, made if need be.

    Args:
        requests: the folder of the request store.
        url: the URL of the shared state.
    """
    folder = requests / f"shared-{hashlib.sha256(url.encode()).hexdigest()[:12]}"
    if not (folder / "source.json").exists():
        write_json(folder / "source.json", {"url": url})
    return folder


def segment_name(stem: str) -> str:
    """Return the name of the object of a segment."""
    return f"segments/{stem[:2]}/{stem}.parquet"


def put_segment(objects: Objects, path: Path) -> None:
    """Put a segment and then its index, which are files beside each other; from then on the segment counts.

    Args:
        objects: the shared state.
        path: the segment.

    Raises:
        Unreachable: when they are not there in the end.
    """
    head = put_whole(objects, segment_name(path.stem), path.read_bytes())
    index = path.with_suffix(".index").read_bytes()
    put_whole(objects, f"indexes/{hour_of(head.modified)}/{path.stem}.index", index)


class SharedSegment(Segment):
    """A segment of a shared state of which only the index needs to be here."""

    _fault = ""  # what is wrong with its records, once that was seen

    def fetch(self) -> None:
        """Fetch the records unless they are here.

        Raises:
            FileNotFoundError: when it was merged into another segment, whose index is here now.
            Unreachable: when the shared state cannot be asked; its completions are not owed for that.
            ValueError: when they are missing there, or not what the name of the segment says.
        """
        if self._fault:
            raise ValueError(self._fault)
        if self.path.exists():
            return
        objects = _objects_of(self.path.parent)
        try:
            fetch_segment(objects, self.path)
        except (FileNotFoundError, ValueError) as error:
            with _RETIRING:  # of several threads that miss segments, one asks for what replaces them
                if isinstance(error, FileNotFoundError) and Retired(self.path.parent, objects).replace(self.path.stem):
                    raise
            with suppress(FileNotFoundError):  # another process of this machine has seen it too
                self.path.with_suffix(".index").rename(self.path.with_suffix(BAD))
            why = "is missing" if isinstance(error, FileNotFoundError) else f"is damaged ({error})"
            self._fault = f"{objects.url}/{segment_name(self.path.stem)} {why}"
            raise ValueError(self._fault) from error

    def _open(self) -> Index:
        path = self.path.with_suffix(".index")
        try:
            index = MappedIndex(path)
            self._metadata = metadata_of(index.footer)
        except ValueError as error:
            self._met(Damage(path, "the whole file", str(error), "it is fetched again by the next run"))
            path.unlink(missing_ok=True)
            return Index(np.zeros(0, np.uint64), np.zeros(0, np.uint32), b"")
        return index

    @cached_property
    def _file(self) -> pq.ParquetFile:
        self.fetch()
        return pq.ParquetFile(self.path, metadata=self._metadata, page_checksum_verification=True)

    @property
    def stored_bytes(self) -> int:
        """The size of its records as they are stored, in bytes."""
        if self._metadata is None:
            return 0
        groups = map(self._metadata.row_group, range(self._metadata.num_row_groups))
        return sum(one.column(number).total_compressed_size for one in groups for number in range(one.num_columns))


def fetch_all(segments: Iterable[SharedSegment]) -> None:
    """Fetch the records of several segments at the same time; what is wrong with one is met when it is read.

    Raises:
        FileNotFoundError: when one was merged into another segment meanwhile.
        Unreachable: when the shared state cannot be asked.
    """

    def fetch(one: SharedSegment) -> None:
        try:
            one.fetch()
        except ValueError:
            return

    missing = [one for one in segments if not one.path.exists()]
    if missing:
        fitting = FETCH_BYTES // max(1, *(one.stored_bytes for one in missing))
        with ThreadPoolExecutor(max(1, min(AT_ONCE, len(missing), fitting))) as pool:
            list(pool.map(fetch, missing))


def fetch_segment(objects: Objects, path: Path) -> None:
    """Fetch a segment, and make sure that it has the records that its name says; nothing is written otherwise.

    Args:
        objects: the shared state.
        path: its file here.

    Raises:
        FileNotFoundError: when it is not there.
        Unreachable: when the shared state cannot be asked.
        ValueError: when it is damaged.
    """
    content, _ = objects.get(segment_name(path.stem))
    with whole_file(path) as temporary:
        temporary.write_bytes(content)
        with reading(temporary), pq.ParquetFile(temporary, page_checksum_verification=True) as file:
            if file.schema_arrow.names != SCHEMA.names:
                raise ValueError("not a table of keys and records")
            found = content_name(_records(file))
        if found != path.stem:
            raise ValueError("its records have another digest")


def _records(file: pq.ParquetFile) -> Iterator[tuple[str, bytes]]:
    for number in range(file.num_row_groups):
        table = file.read_row_group(number)
        for key, record in zip(table["key"].to_pylist(), table["record"].to_pylist(), strict=True):
            yield key, record.encode()


@cache
def _objects_of(folder: Path) -> Objects:
    """Return the shared state whose indexes a folder has."""
    return connect(str((read_json(folder / "source.json") or {}).get("url", "")))
