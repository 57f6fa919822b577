"""Write the Parquet files of a release by ranges of problems, all views in one pass over the rows.

The settings (zstd, content-defined chunking, page index, row groups under 100 MB, files under 500 MB) follow
https://huggingface.co/docs/hub/datasets-libraries. Files are ranges of problem hashes, so equal rows give equal files,
and a small change transfers few bytes to a store that deduplicates chunks.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tracefactory.core.columns import Column
from tracefactory.core.digests import combined_digest, table_digest
from tracefactory.core.errors import RunError
from tracefactory.core.rows import Trace
from tracefactory.core.stage import Batch
from tracefactory.publish.control_tokens import TokenCheck
from tracefactory.publish.students import StudentCheck
from tracefactory.publish.views import VIEWS, Group, Row, Rows, View

FILE_CHARACTERS = 160 << 20
"""Maximum characters of reasoning and answers in one file, before compression; a view can double them."""
_GROUP_BYTES = 32 << 20  # of rows in memory per row group; the Hub's viewer reads a row group at once
_BATCH_ROWS = 512
_CHUNKING = {"min_chunk_size": 256 * 2**10, "max_chunk_size": 2**20, "norm_level": 0}


@dataclass
class ViewPart:
    """The part of a view in one range: the file (None without rows), its number of rows and their digest.

    `left_out` counts by reason the traces that a partial view omits, and `unrendered` by student and reason the rows
    that a chat template does not render as they were meant. `spelled` counts by control token the rows that spell, or
    before they were escaped spelled, one.
    """

    file: Path | None = None
    rows: int = 0
    digest: str = combined_digest([])
    left_out: Counter[str] = field(default_factory=Counter)
    unrendered: Counter[tuple[str, str]] = field(default_factory=Counter)
    spelled: Counter[str] = field(default_factory=Counter)


@dataclass
class RangePart:
    """The result of writing one range: a part of each view, and the traces that are in no view, with the reasons."""

    number: int
    views: dict[str, ViewPart]
    refused: dict[str, tuple[str, str]] = field(default_factory=dict)


def write_range(
    folder: Path,
    number: int,
    views: Sequence[str],
    batches: Iterable[Batch],
    columns: Sequence[Column],
    check: StudentCheck | None = None,
    tokens: TokenCheck | None = None,
) -> RangePart:
    """Write one range of a release.

    Args:
        folder: the folder for the files `<view>/<number>.parquet`.
        number: the index of the range.
        views: the names of the views.
        batches: the sorted traces of the range, in complete problems.
        columns: the declared columns of the traces.
        check: the check of the rows with chat templates of students; None for none.
        tokens: what becomes of control tokens in texts; None drops those of common chat templates.

    Raises:
        RunError: for a duplicate row.
    """
    checks = _Checks(check or StudentCheck({}, strict=False), tokens or TokenCheck())
    part = RangePart(number, {name: ViewPart() for name in views})
    writers = {name: _Writer(folder / name / f"{number:05d}.parquet", VIEWS.get(name), columns) for name in views}
    for batch in batches:
        for traces in batch.groups():
            refused = checks.tokens.refuse(traces)
            made = checks.rows(views, [trace for trace in traces if trace.id not in refused])
            # Without the traces that a view cannot represent, all views that are not partial have equal rows.
            unfit = {name: rows.refused for name, (rows, _) in made.items() if not VIEWS.get(name).partial}
            if any(unfit.values()):
                for errors in unfit.values():
                    refused = {**errors, **refused}
                made = checks.rows(views, [trace for trace in traces if trace.id not in refused])
            part.refused |= {trace_id: (error.reason, error.detail) for trace_id, error in refused.items()}
            for name, (rows, spelled) in made.items():
                part.views[name].left_out.update(error.reason for error in rows.refused.values())
                part.views[name].unrendered.update(checks.students.count(rows.rows))
                part.views[name].spelled.update(spelled[row["id"]] for row in rows.rows if row["id"] in spelled)
                writers[name].add(rows.rows)
    for name, writer in writers.items():
        writer.close()
        part.views[name].file = writer.path if writer.rows else None
        part.views[name].rows = writer.rows
        part.views[name].digest = combined_digest(writer.digests)
    return part


@dataclass(frozen=True)
class _Checks:
    students: StudentCheck
    tokens: TokenCheck

    def rows(self, views: Sequence[str], traces: Sequence[Trace]) -> dict[str, tuple[Rows, dict[str, str]]]:
        """Return the rows of each view, and by row id the control token that a row spells; none without traces."""
        if not traces:
            return {}
        group, made = Group(traces[0].problem, traces), {}
        for view in map(VIEWS.get, views):
            rows, spelled = self.tokens.apply(view, view.rows(group))
            made[view.name] = self.students.refuse(rows), spelled
        return made


class _Writer:
    """Writes the rows of one view, checks their order, and computes their digests."""

    def __init__(self, path: Path, view: View, columns: Sequence[Column]) -> None:
        self.path = path
        self.rows = 0
        self.digests: list[str] = []
        self._schema = view.schema(columns)
        self._pending: list[Row] = []
        self._group: list[pa.Table] = []
        self._writer: pq.ParquetWriter | None = None
        self._last = ("", "")

    def add(self, rows: Sequence[Row]) -> None:
        """Add the rows of a problem.

        Raises:
            RunError: for a duplicate row.
        """
        for row in sorted(rows, key=lambda row: row["id"]):
            key = (row["problem_id"], row["id"])
            if key <= self._last:
                raise RunError(f"row {row['id']} of problem {row['problem_id']} occurs twice; nothing was published")
            self._last = key
            self._pending.append(row)
        if len(self._pending) >= _BATCH_ROWS:
            self._make_table()

    def close(self) -> None:
        """Write the remaining rows and sync the file."""
        self._make_table()
        self._flush()
        if self._writer is not None:
            self._writer.close()
            with self.path.open("rb") as file:
                os.fsync(file.fileno())

    def _make_table(self) -> None:
        if not self._pending:
            return
        table = pa.Table.from_pylist(self._pending, schema=self._schema)
        self.digests.append(table_digest(table))
        self.rows += table.num_rows
        self._group.append(table)
        self._pending = []
        if sum(one.nbytes for one in self._group) > _GROUP_BYTES:
            self._flush()

    def _flush(self) -> None:
        if not self._group:
            return
        if self._writer is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._writer = pq.ParquetWriter(
                self.path,
                self._schema,
                compression="zstd",
                use_content_defined_chunking=_CHUNKING,
                write_page_index=True,
            )
        table = pa.concat_tables(self._group)
        self._writer.write_table(table, row_group_size=table.num_rows)
        self._group = []
