"""Write one Parquet part of a shard by row groups, atomically."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tracefactory.core.errors import RunError
from tracefactory.core.files import whole_file

GROUP_BYTES, GROUP_ROWS = 16 << 20, 4096
"""The maximum size of a row group of text, which is read at once."""
PARQUET = {"compression": "zstd", "write_page_checksum": True}


class RowWriter:
    """Writes one part; the file is there under its name when it is committed."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._atomic = whole_file(path)
        self._path = path
        with writing(path):
            self._writer = pq.ParquetWriter(self._atomic.__enter__(), schema, **PARQUET)
        self._pending: list[pa.Table] = []
        self._rows = self._bytes = 0
        self._open = True

    def add(self, rows: pa.Table) -> None:
        # Batches are split at row groups, so that no group is much larger than the limit.
        step = max(1, min(GROUP_ROWS, GROUP_BYTES * max(rows.num_rows, 1) // max(rows.nbytes, 1)))
        for start in range(0, rows.num_rows, step):
            piece = rows.slice(start, step)
            if self._rows + piece.num_rows > GROUP_ROWS or self._bytes + piece.nbytes > GROUP_BYTES:
                self._flush()
            self._pending.append(piece)
            self._rows += piece.num_rows
            self._bytes += piece.nbytes

    def commit(self) -> None:
        self._flush()
        with writing(self._path):
            self._writer.close()
            self._open = False
            self._atomic.__exit__(None, None, None)

    def abandon(self) -> None:
        if self._open:
            self._open = False
            with suppress(OSError):  # of a file that is removed
                self._writer.close()
            error = RuntimeError("the shard was not committed")
            self._atomic.__exit__(type(error), error, None)

    def _flush(self) -> None:
        if self._pending:
            table = pa.concat_tables(self._pending)
            with writing(self._path):
                self._writer.write_table(table, row_group_size=max(table.num_rows, 1))
            self._pending, self._rows, self._bytes = [], 0, 0


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raise RunError when a part cannot be written, e.g. because the disk is full."""
    try:
        yield
    except OSError as error:
        why = error.strerror or str(error)
        raise RunError(
            f"{path} could not be written ({why}); free space or make it writable, and run the same command again:"
            " nothing is paid again"
        ) from error
