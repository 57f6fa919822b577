"""Indexes of segments: from the first 64 bits of a key to its row.

magic, number of keys n, CRC-32 of everything else
n first 8 bytes of a key, sorted
n numbers of rows
a copy of the footer of the segment's Parquet file (not in the indexes of version 0.2)
"""

from __future__ import annotations

import mmap
import os
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tracefactory.core.files import whole_file

_MAGIC, _MAGIC_0_2 = b"tfindex4", b"tfindex3"
MAPPED_BYTES = 1 << 20
"""Index files of so many bytes are memory-mapped."""
_HEADER = struct.Struct("<8sQQ")
_CRC_AT = 16

Prefixes = NDArray[np.uint64]
Rows = NDArray[np.uint32]


def prefixes_of(keys: Sequence[str]) -> Prefixes:
    """Return the first 64 bits of each key."""
    return np.frombuffer(bytes.fromhex("".join(key[:16] for key in keys)), ">u8").astype(np.uint64)


class Index:
    """The sorted key prefixes of a segment and their rows, in memory."""

    def __init__(self, prefixes: Prefixes, rows: Rows, footer: bytes) -> None:
        order = np.argsort(prefixes, kind="stable")
        self.prefixes: Prefixes = prefixes[order]
        self.rows: Rows = rows[order]
        self.footer = footer

    def write(self, path: Path) -> None:
        """Write the index to a file, atomically."""
        body = self.prefixes.tobytes() + self.rows.tobytes() + self.footer
        head = _HEADER.pack(_MAGIC, len(self.prefixes), 0)[:_CRC_AT]
        with whole_file(path) as temporary:
            temporary.write_bytes(head + zlib.crc32(body, zlib.crc32(head)).to_bytes(8, "little") + body)

    def close(self) -> None:
        """Do nothing; a mapped index is closed."""


class MappedIndex(Index):
    """An index file, memory-mapped; a small one is read, because each mapping holds a file open.

    Raises:
        FileNotFoundError: when there is none.
        ValueError: when it is damaged or has an unknown version.
    """

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            is_small = os.fstat(file.fileno()).st_size < MAPPED_BYTES
            self._map = None if is_small else mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            content = file.read() if self._map is None else self._map
        whole = memoryview(content)
        try:
            count = _checked_count(whole)
        except ValueError:
            whole.release()
            if self._map is not None:
                self._map.close()
            raise
        end = _HEADER.size + 12 * count
        self.prefixes = np.frombuffer(content, np.uint64, count, _HEADER.size)
        self.rows = np.frombuffer(content, np.uint32, count, _HEADER.size + 8 * count)
        self.footer = bytes(whole[end:])
        whole.release()

    def close(self) -> None:
        del self.prefixes, self.rows
        if self._map is not None:
            self._map.close()


def _checked_count(whole: memoryview) -> int:
    """Return the number of keys of an index file after checking its size and checksum."""
    if len(whole) < _HEADER.size:
        raise ValueError("it is too short")
    magic, count, checksum = _HEADER.unpack(whole[: _HEADER.size])
    size = _HEADER.size + 12 * count
    if magic == _MAGIC_0_2 and len(whole) == size:
        covered = zlib.crc32(whole[_HEADER.size :])
    elif magic == _MAGIC and len(whole) >= size:
        covered = zlib.crc32(whole[_HEADER.size :], zlib.crc32(whole[:_CRC_AT]))
    else:
        raise ValueError("it has another size or version")
    if covered != checksum:
        raise ValueError("wrong checksum")
    return int(count)
