"""Segments of the request store: immutable Parquet files of completions, each with a sorted index of its keys.

    <sha256>.parquet   columns key (64 hexadecimal digits) and record (JSON), sorted by problem; pages have checksums
    <sha256>.index     the rows of its keys, and a copy of its Parquet footer (`store.indexes`)

A segment is named by its content, so writing it twice gives one file. Segments of version 1 (`segment-*.parquet`) are
supported for reading; a missing or damaged index is rebuilt from the keys.

Rows that cannot be read are lost: `rows_of` and `read` leave them out, from the moment when the damage is met. Reading
only keys does not read the records, so damage of these is met by `read`. With the copy of the footer, what is left of a
truncated segment is used.
"""

from __future__ import annotations

import hashlib
import os
import re
import struct
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from tracefactory.core.files import whole_file
from tracefactory.store.damage import Damage, reading
from tracefactory.store.indexes import Index, MappedIndex, Prefixes, prefixes_of
from tracefactory.store.journals import check_request

SCHEMA = pa.schema([pa.field("key", pa.string(), nullable=False), pa.field("record", pa.string(), nullable=False)])
GROUP_BYTES = 4 << 20
"""Bytes of records in one row group, which is read to get one of them."""
V1_PREFIX = "segment-"
_GROUP_ROWS = 4096
_KEY_VERSIONS = b"key_versions"
_TAIL = struct.Struct("<I4s")  # the end of a Parquet file: the length of the footer, and the magic number
_PARQUET = b"PAR1"
_KEY = re.compile("[0-9a-f]{64}")

Met = Callable[[Damage], None]
"""Is told every damage that is met."""


class Segment:
    """One segment, opened for reading. The index is kept open, memory-mapped.

    Args:
        path: the Parquet file.
        met: is told the damage.
        writes: whether a missing or damaged index is written again.
    """

    def __init__(self, path: Path, met: Met, *, writes: bool = True) -> None:
        self.path = path
        self._met = met
        self._writes = writes
        self._metadata: pq.FileMetaData | None = None
        self._lost: NDArray[np.bool_] | None = None  # by row; None while no damage was met
        self.index = self._open()

    @cached_property
    def has_v1_keys(self) -> bool:
        """Whether it holds completions under keys of version 1."""
        return 1 in self.key_versions

    @property
    def lost(self) -> int:
        """The number of rows that are known to be lost."""
        return 0 if self._lost is None else int(self._lost.sum())

    @property
    def key_versions(self) -> set[int]:
        """The versions of its keys; empty when they cannot be told."""
        if self.path.name.startswith(V1_PREFIX):
            return {1}
        if self._metadata is None:
            return set()
        named = (self._metadata.metadata or {}).get(_KEY_VERSIONS, b"2")
        return {int(one) for one in named.split(b",") if one.isdigit()}

    def rows_of(self, prefixes: Prefixes) -> NDArray[np.int64]:
        """Return the row of each key prefix, -1 for prefixes that are not in the segment, or whose row is lost."""
        if not len(self.index.prefixes):
            return np.full(len(prefixes), -1)
        found = np.searchsorted(self.index.prefixes, prefixes)
        inside = np.minimum(found, len(self.index.prefixes) - 1)
        hit = self.index.prefixes[inside] == prefixes
        rows = np.where(hit, self.index.rows[inside].astype(np.int64), -1)
        return rows if self._lost is None else np.where((rows >= 0) & ~self._lost[rows], rows, -1)

    def rows_from(self, prefix: str) -> list[int]:
        """Return the rows whose key may begin with a prefix, in ascending order, without lost rows."""
        first, last = (int(prefix[:16].ljust(16, digit), 16) for digit in "0f")
        start = int(np.searchsorted(self.index.prefixes, np.uint64(first), side="left"))
        end = int(np.searchsorted(self.index.prefixes, np.uint64(last), side="right"))
        rows = sorted(self.index.rows[start:end].tolist())
        return rows if self._lost is None else [row for row in rows if not self._lost[row]]

    def read(self, rows: Sequence[int]) -> Iterator[tuple[int, str, dict[str, Any]]]:
        """Yield (row, key, record) for rows in ascending order, without lost rows; each row group is read once."""
        group, first, table = -1, 0, None
        for row in rows:
            wanted = int(np.searchsorted(self._ends, row, side="right"))
            if wanted != group:
                group, first = wanted, int(self._ends[wanted - 1]) if wanted else 0
                table = self.group(group)
            if table is None:
                continue
            try:
                yield row, *self.checked(table, row - first)
            except ValueError as error:
                self._lose(row, row + 1, f"row {row}", str(error))

    def whole_rows(self) -> Iterator[tuple[int, str, bytes]]:
        """Yield (row, key, record as JSON) of all rows that are not lost, after checking each."""
        first = 0
        for number, end in enumerate(self._ends.tolist()):
            table = self.group(number)
            for row in range(first, end):
                if table is None:
                    break
                try:
                    key, _ = self.checked(table, row - first)
                except ValueError as error:
                    self._lose(row, row + 1, f"row {row}", str(error))
                else:
                    yield row, key, table["record"][row - first].as_py().encode()
            first = end

    def group(self, number: int) -> pa.Table | None:
        """Return a row group, None when it is damaged."""
        first, end = int(self._ends[number - 1]) if number else 0, int(self._ends[number])
        try:
            with reading(self.path):
                table = self._file.read_row_group(number)
                if table.num_rows != end - first:
                    raise ValueError("another number of rows than its footer says")
        except ValueError as error:
            self._lose(first, end, f"row group {number}", str(error))
            return None
        return table

    def checked(self, table: pa.Table, at: int) -> tuple[str, dict[str, Any]]:
        """Return the key and the record of one row of a row group.

        Raises:
            ValueError: when they are damaged. Only segments of version 1, without checksums, come so far.
        """
        key: str = table["key"][at].as_py()
        record: dict[str, Any] = orjson.loads(table["record"][at].as_py())
        if self.path.name.startswith(V1_PREFIX):
            check_request(key, record)
        return key, record

    def close(self) -> None:
        self.index.close()
        if "_file" in vars(self):
            self._file.close()

    def _open(self) -> Index:
        """Read the footer and the index; a segment without both is lost."""
        path = self.path.with_suffix(".index")
        index: Index | None = None
        try:
            index = MappedIndex(path)
        except FileNotFoundError:
            pass
        except ValueError as error:
            self._met(Damage(path, "the whole file", str(error), "it is rebuilt from the keys of its segment"))
        copy = b"" if index is None else index.footer
        footer = _footer_of(self.path)
        intact = not copy or footer == copy
        try:
            self._metadata = metadata_of(copy or footer)
        except ValueError as error:
            if index is not None:
                index.close()
            self._met(Damage(self.path, "the whole file", str(error), "its completions are owed again"))
            return Index(np.zeros(0, np.uint64), np.zeros(0, np.uint32), b"")
        rows = self._metadata.num_rows
        if index is not None and len(index.rows) and (len(index.rows) != rows or int(index.rows.max()) >= rows):
            self._met(Damage(path, "the whole file", "it does not fit its segment", "it is rebuilt from the keys"))
            index.close()
            index = None
        if not intact:
            what = "its end is missing or was changed; the copy of its footer in the index is used"
            self._met(Damage(self.path, "footer", what, "what can be read is used, the rest is owed again"))
            for number in range(len(self._ends)):  # any of them may be damaged, and present and get must agree
                self.group(number)
        return self._rebuilt(path, footer) if index is None else index

    def _rebuilt(self, path: Path, footer: bytes) -> Index:
        """Return an index of the keys that can be read; it is written if this is possible and no key is missing."""
        prefixes: list[Prefixes] = []
        rows: list[NDArray[np.uint32]] = []
        first = 0
        for number, end in enumerate(self._ends.tolist()):
            try:
                with reading(self.path):
                    keys = self._file.read_row_group(number, columns=["key"])["key"].to_pylist()
                if len(keys) != end - first or not all(map(_KEY.fullmatch, keys)):
                    raise ValueError("not a table of keys and records")
            except (ValueError, TypeError) as error:
                self._lose(first, end, f"row group {number}", str(error))
            else:
                prefixes.append(prefixes_of(keys))
                rows.append(np.arange(first, end, dtype=np.uint32))
            first = end
        index = Index(
            np.concatenate(prefixes or [np.zeros(0, np.uint64)]),
            np.concatenate(rows or [np.zeros(0, np.uint32)]),
            footer,
        )
        if self._writes and self._lost is None and os.access(path.parent, os.W_OK):
            try:
                index.write(path)
                return MappedIndex(path)
            except OSError:  # a full or read-only file system: the index in memory is as good
                return index
        return index

    @cached_property
    def _file(self) -> pq.ParquetFile:
        return pq.ParquetFile(self.path, metadata=self._metadata, page_checksum_verification=True)

    @cached_property
    def _ends(self) -> NDArray[np.int64]:
        """The end row of each row group."""
        if self._metadata is None:
            return np.zeros(0, np.int64)
        groups = range(self._metadata.num_row_groups)
        return np.cumsum([self._metadata.row_group(number).num_rows for number in groups], dtype=np.int64)

    def _lose(self, first: int, end: int, place: str, why: str) -> None:
        if self._lost is None:
            assert self._metadata is not None
            self._lost = np.zeros(self._metadata.num_rows, bool)
        self._lost[first:end] = True
        owed = f"its {end - first} requests are owed again" if end - first > 1 else "its request is owed again"
        self._met(Damage(self.path, place, why, owed))


def write_segment(folder: Path, records: list[tuple[str, str, bytes]], key_versions: set[int]) -> Path:
    """Write a segment and its index into `folder` and return its path.

    Args:
        records: (near, key, record as JSON) of each completion; those of one problem (`near`) are stored together.
        key_versions: the versions of their keys.
    """
    ordered = sorted(records, key=lambda one: one[:2])
    path = folder / f"{content_name((key, record) for _, key, record in ordered)}.parquet"
    schema = SCHEMA.with_metadata({_KEY_VERSIONS: ",".join(map(str, sorted(key_versions))).encode()})
    options = {"compression": "zstd", "write_page_checksum": True}
    with whole_file(path) as temporary, pq.ParquetWriter(temporary, schema, **options) as writer:
        for group in _groups(ordered):
            columns = {"key": [key for _, key, _ in group], "record": [record.decode() for _, _, record in group]}
            writer.write_table(pa.Table.from_pydict(columns, schema=schema), row_group_size=len(group))
    prefixes = prefixes_of([key for _, key, _ in ordered])
    Index(prefixes, np.arange(len(ordered), dtype=np.uint32), _footer_of(path)).write(path.with_suffix(".index"))
    return path


def content_name(records: Iterator[tuple[str, bytes]]) -> str:
    """Return the name of a segment with these (key, record as JSON), in this order."""
    digest = hashlib.sha256()
    for key, record in records:
        digest.update(key.encode())
        digest.update(hashlib.sha256(record).digest())
    return digest.hexdigest()


def _groups(ordered: list[tuple[str, str, bytes]]) -> Iterator[list[tuple[str, str, bytes]]]:
    group: list[tuple[str, str, bytes]] = []
    size = 0
    for one in ordered:
        if group and (size + len(one[2]) > GROUP_BYTES or len(group) == _GROUP_ROWS):
            yield group
            group, size = [], 0
        group.append(one)
        size += len(one[2])
    if group:
        yield group


def _footer_of(path: Path) -> bytes:
    """Return the footer of a Parquet file with its length and magic number; nothing when there is none."""
    with reading(path), path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        if size < _TAIL.size:
            return b""
        file.seek(size - _TAIL.size)
        length, magic = _TAIL.unpack(file.read())
        if magic != _PARQUET or length + _TAIL.size > size:
            return b""
        file.seek(size - length - _TAIL.size)
        return file.read()


def metadata_of(footer: bytes) -> pq.FileMetaData:
    """Return what a footer says.

    Raises:
        ValueError: when it is damaged, or of another kind of table.
    """
    if not footer:
        raise ValueError("not a Parquet file, or truncated")
    with reading(Path("footer")):
        found = pq.read_metadata(pa.BufferReader(_PARQUET + footer))
        if found.schema.names != SCHEMA.names:
            raise ValueError("not a table of keys and records")
    return found
