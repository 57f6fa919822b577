"""Segments of the request store: immutable Parquet files of completions, each with a sorted index of its keys.

    <sha256>.parquet   columns key (64 hexadecimal digits) and record (JSON), sorted by problem
    <sha256>.index     the first 8 bytes of every key, sorted, and the row of each, with a checksum; memory-mapped

A segment is named by its content, so writing it twice gives one file. Segments of version 1 (`segment-*.parquet`) are
supported for reading; a missing or damaged index is rebuilt from the keys.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from tracefactory.core.errors import RunError
from tracefactory.core.files import whole_file

SCHEMA = pa.schema([pa.field("key", pa.string(), nullable=False), pa.field("record", pa.string(), nullable=False)])
GROUP_BYTES = 4 << 20
"""Bytes of records in one row group, which is read to get one of them."""
V1_PREFIX = "segment-"
_GROUP_ROWS = 4096
_MAGIC = b"tfindex3"
_HEADER = struct.Struct("<8sQQ")  # magic, number of keys, CRC-32 of what follows
_KEY_VERSIONS = b"key_versions"

Prefixes = NDArray[np.uint64]


def prefixes_of(keys: Sequence[str]) -> Prefixes:
    """Return the first 64 bits of each key."""
    return np.frombuffer(bytes.fromhex("".join(key[:16] for key in keys)), ">u8").astype(np.uint64)


class Segment:
    """One segment, opened for reading. Only the index is kept open, memory-mapped."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.index = _open_index(path)

    @cached_property
    def has_v1_keys(self) -> bool:
        """Whether it holds completions under keys of version 1."""
        if self.path.name.startswith(V1_PREFIX):
            return True
        return b"1" in (self._file.schema_arrow.metadata or {}).get(_KEY_VERSIONS, b"").split(b",")

    def rows_of(self, prefixes: Prefixes) -> NDArray[np.int64]:
        """Return the row of each key prefix, -1 for prefixes that are not in the segment."""
        found = np.searchsorted(self.index.prefixes, prefixes)
        inside = np.minimum(found, len(self.index.prefixes) - 1)
        hit = self.index.prefixes[inside] == prefixes if len(self.index.prefixes) else np.zeros(len(prefixes), bool)
        return np.where(hit, self.index.rows[inside].astype(np.int64), -1)

    def read(self, rows: Sequence[int]) -> Iterator[tuple[int, str, str]]:
        """Yield (row, key, record) for rows in ascending order; each row group is read once."""
        group, first, table = -1, 0, None
        for row in rows:
            wanted = int(np.searchsorted(self._ends, row, side="right"))
            if wanted != group or table is None:
                group, first = wanted, int(self._ends[wanted - 1]) if wanted else 0
                try:
                    table = self._file.read_row_group(group)
                except (OSError, pa.ArrowInvalid) as error:
                    raise RunError(f"{self.path} is damaged ({error})") from error
            yield row, table["key"][row - first].as_py(), table["record"][row - first].as_py()

    def close(self) -> None:
        self.index.close()
        self._file.close()

    @cached_property
    def _file(self) -> pq.ParquetFile:
        try:
            return pq.ParquetFile(self.path, memory_map=True, page_checksum_verification=True)
        except (OSError, pa.ArrowInvalid) as error:
            raise RunError(f"{self.path} is damaged ({error})") from error

    @cached_property
    def _ends(self) -> NDArray[np.int64]:
        """The end row of each row group."""
        metadata = self._file.metadata
        return np.cumsum([metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)])


def write_segment(folder: Path, records: list[tuple[str, str, bytes]], key_versions: set[int]) -> Path:
    """Write a segment and its index into `folder` and return its path.

    Args:
        records: (near, key, record as JSON) of each completion; those of one problem (`near`) are stored together.
        key_versions: the versions of their keys.
    """
    ordered = sorted(records, key=lambda one: one[:2])
    digest = hashlib.sha256()
    for _, key, record in ordered:
        digest.update(key.encode())
        digest.update(hashlib.sha256(record).digest())
    path = folder / f"{digest.hexdigest()}.parquet"
    schema = SCHEMA.with_metadata({_KEY_VERSIONS: ",".join(map(str, sorted(key_versions))).encode()})
    options = {"compression": "zstd", "write_page_checksum": True}
    with whole_file(path) as temporary, pq.ParquetWriter(temporary, schema, **options) as writer:
        for group in _groups(ordered):
            columns = {"key": [key for _, key, _ in group], "record": [record.decode() for _, _, record in group]}
            writer.write_table(pa.Table.from_pydict(columns, schema=schema), row_group_size=len(group))
    _write_index(path, [key for _, key, _ in ordered])
    return path


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


class _Index:
    """The sorted key prefixes of a segment and their rows, memory-mapped."""

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        whole = memoryview(self._map)
        magic, count, checksum = _HEADER.unpack(whole[: _HEADER.size]) if len(whole) >= _HEADER.size else (b"", 0, 0)
        if magic != _MAGIC or len(whole) != _HEADER.size + 12 * count or zlib.crc32(whole[_HEADER.size :]) != checksum:
            whole.release()
            self._map.close()
            raise ValueError(f"{path} is damaged or has another version")
        self.prefixes: Prefixes = np.frombuffer(self._map, np.uint64, count, _HEADER.size)
        self.rows: NDArray[np.uint32] = np.frombuffer(self._map, np.uint32, count, _HEADER.size + 8 * count)
        whole.release()

    def close(self) -> None:
        del self.prefixes, self.rows
        self._map.close()


class _MemoryIndex:
    """An index in memory, for a segment in a read-only folder."""

    def __init__(self, keys: Sequence[str]) -> None:
        self.prefixes, self.rows = _sorted_prefixes(keys)

    def close(self) -> None:
        """Do nothing."""


def _sorted_prefixes(keys: Sequence[str]) -> tuple[Prefixes, NDArray[np.uint32]]:
    prefixes = prefixes_of(keys)
    order = np.argsort(prefixes, kind="stable")
    return prefixes[order], order.astype(np.uint32)


def _open_index(path: Path) -> _Index | _MemoryIndex:
    index = path.with_suffix(".index")
    try:
        return _Index(index)
    except (FileNotFoundError, ValueError):
        keys = pq.read_table(path, columns=["key"])["key"].to_pylist()
        if not os.access(path.parent, os.W_OK):
            return _MemoryIndex(keys)
        _write_index(path, keys)
        return _Index(index)


def _write_index(path: Path, keys: Sequence[str]) -> None:
    prefixes, rows = _sorted_prefixes(keys)
    with whole_file(path.with_suffix(".index")) as temporary, temporary.open("wb") as file:
        body = prefixes.tobytes() + rows.tobytes()
        file.write(_HEADER.pack(_MAGIC, len(keys), zlib.crc32(body)) + body)
