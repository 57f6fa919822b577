"""The rows of a stage, combined from the tables of the stages on its path.

A stage's rows are those it made and, if it judges, those of its inputs, without those it did not keep. Its `judged`
table has one line for each row, in the same order, so tables are stacked and not joined. Each column is from the last
stage on the path that has a value for it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import polars as pl

from tracefactory.core.columns import Column
from tracefactory.core.errors import RunError
from tracefactory.core.rows import Kind, Problem, Trace
from tracefactory.core.spans import Span
from tracefactory.core.stage import Batch
from tracefactory.core.tables import DECISION_COLUMNS, KEYS, TABLE_OF, Table, problems_from, schema_of, traces_from
from tracefactory.store.damage import REPAIR
from tracefactory.store.stages import StageFolder, damage_of_part

CHUNK_BYTES, CHUNK_ROWS = 16 << 20, 4096
"""The maximum text and number of rows that `StageRows.batches` reads at once."""
_SIZES = ("reasoning_characters", "answer_characters")
_REPAIR = f"`{REPAIR}` and the same command make it again; nothing is paid again"
_OLDER_STRUCTS = pl.ScanCastOptions(missing_struct_fields="insert")
"""Members that structs of earlier versions lack, such as the confidence of a verdict, are null."""
_PROBLEM_CHARACTERS = 2000  # an estimate of the text of a problem; no column has its size


@dataclass(frozen=True)
class StageRows:
    """The rows of one stage, in a layout of `shards` shards.

    `gives` is their kind and `makes` the kind of the rows that the stage made itself; `judges` is whether it passes on
    rows of its `inputs`.
    """

    folder: StageFolder
    shards: int
    gives: Kind
    makes: Kind
    judges: bool
    inputs: tuple[StageRows, ...] = ()

    def frame(self, span: Span, wanted: Iterable[str] | None = None) -> pl.DataFrame:
        """Return the rows of a span that the stage keeps, sorted by (problem_id, id).

        Args:
            span: the range of problems.
            wanted: names of columns in addition to the keys, None for all. Missing columns are skipped.
        """
        wanted = None if wanted is None else frozenset(wanted)
        frame = self.judged(span, wanted).filter("kept")
        return frame.drop([name for name in DECISION_COLUMNS if name in frame.columns])

    def judged(self, span: Span, wanted: frozenset[str] | None = None) -> pl.DataFrame:
        """Return all rows of a span that the stage made or received, with its decisions.

        Raises:
            RunError: when its judged table does not match the rows, because a file was lost or replaced.
        """
        rows = self._rows(span, wanted)
        judged = self._read(Table.JUDGED, span, None if wanted is None else wanted | {"kept"})
        if not rows["id"].equals(judged["id"]):
            parts = [self.folder.part(Table.JUDGED, index, self.shards) for index in span.parts(self.shards)]
            named = ", ".join(map(str, parts if len(parts) < 4 else [*parts[:3], "..."]))
            raise RunError(f"{named}: its judged table does not match the rows; {_REPAIR}")
        return _overlay(rows, judged.drop(KEYS))

    def problems(self, span: Span, wanted: Iterable[str] | None = None) -> pl.DataFrame:
        """Return the problems of the rows of a span, each once, possibly including those of dropped rows."""
        wanted = None if wanted is None else frozenset(wanted)
        if self.gives is Kind.PROBLEMS:
            return self.frame(span, wanted)
        found = [one.problems(span, wanted) for one in self.inputs]
        if not self.inputs:  # a source of traces, which also made their problems
            found = [self._read(Table.PROBLEMS, span, wanted)]
        return _merge(found)

    def batches(self, span: Span, problems: int) -> Iterator[Batch]:
        """Yield the rows of a span with all columns, in batches of up to `problems` complete problems."""
        for chunk in self._chunks(span):
            if self.gives is Kind.PROBLEMS:
                rows = problems_from(self.frame(chunk))
                yield from (Batch(problems=rows[at : at + problems]) for at in range(0, len(rows), problems))
            else:
                yield from self._trace_batches(chunk, problems)

    def traces(self, span: Span) -> list[Trace]:
        """Return the traces of a span with their problems."""
        frame = self.frame(span)
        owners = frame["problem_id"].unique().implode()
        known = problems_from(self.problems(span).filter(pl.col("id").is_in(owners)))
        return traces_from(frame, {one.id: one for one in known})

    def rows(self) -> Iterator[Problem | Trace]:
        """Yield all rows; they are read in chunks."""
        for batch in self.batches(Span.all(), CHUNK_ROWS):
            yield from batch.rows

    @cached_property
    def columns(self) -> Mapping[str, Column]:
        """The declared columns of the rows, by name."""
        found: dict[str, Column] = {}
        for one in self.inputs:
            found |= one.columns
        record = self.folder.record()
        parts = [self.folder.shard_record(index, self.shards) for index in range(self.shards)] if record is None else []
        own = record.columns if record is not None else [column for part in parts if part for column in part.columns]
        return found | {column.name: column for column in own}

    def _rows(self, span: Span, wanted: frozenset[str] | None) -> pl.DataFrame:
        found = [one.frame(span, wanted) for one in self.inputs] if self.judges else []
        if self.makes is not Kind.NONE:
            found.append(self._read(TABLE_OF[self.makes], span, wanted))
        return _merge(found)

    def _read(self, table: Table, span: Span, wanted: frozenset[str] | None) -> pl.DataFrame:
        """Return columns of one table; declared columns and members that a part lacks are null."""
        own = self.columns_of(table, span)
        schema = {name: kind for name, kind in own.items() if wanted is None or name in wanted or name in KEYS}
        parts = [self.folder.part(table, index, self.shards) for index in span.parts(self.shards)]
        lazy = pl.scan_parquet(
            parts, schema=schema, missing_columns="insert", extra_columns="ignore", cast_options=_OLDER_STRUCTS
        )
        ends = (span.parts(self.shards)[0], span.parts(self.shards)[-1])
        if not all(span.covers(index, self.shards) for index in ends):
            lazy = lazy.filter(pl.col("problem_id").is_between(pl.lit(span.first), pl.lit(span.last)))
        try:
            return lazy.collect()
        except (OSError, pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
            found = [str(damage) for path in parts for damage in damage_of_part(path)]
            what = "; ".join(found) or f"a part of its {table} table cannot be read ({str(error)[:200]})"
            raise RunError(f"{self.folder.path.name}: {what}; {_REPAIR}") from error

    def columns_of(self, table: Table, span: Span) -> dict[str, pl.DataType]:
        """Return the columns of one table and their types."""
        declared: Iterable[Column] = ()
        if table is Table.JUDGED:
            record = self.folder.record()
            if record is not None:
                declared = record.columns
            else:
                parts = (self.folder.shard_record(index, self.shards) for index in span.parts(self.shards))
                declared = {one.name: one for part in parts if part is not None for one in part.columns}.values()
        return dict(pl.Schema(schema_of(table, declared)))

    def _chunks(self, span: Span) -> Iterator[Span]:
        """Yield spans with about the amount of data to read at once."""
        sizes = self.frame(span, _SIZES if self.gives is Kind.TRACES else ())
        if sizes.is_empty():
            return
        size = pl.sum_horizontal(_SIZES) if self.gives is Kind.TRACES else pl.lit(_PROBLEM_CHARACTERS)
        groups = sizes.group_by("problem_id", maintain_order=True).agg(size.sum().alias("size"), pl.len().alias("rows"))
        chunk = pl.max_horizontal(
            (pl.col("size").cum_sum() - pl.col("size")) // CHUNK_BYTES,
            (pl.col("rows").cum_sum() - pl.col("rows")) // CHUNK_ROWS,
        )
        edges = groups.group_by(chunk.alias("chunk"), maintain_order=True).agg(
            pl.col("problem_id").first().alias("first"), pl.col("problem_id").last().alias("last")
        )
        yield from (Span(first, last) for first, last in edges.select("first", "last").iter_rows())

    def _trace_batches(self, span: Span, problems: int) -> Iterator[Batch]:
        traces = self.traces(span)
        start = 0
        while start < len(traces):
            stop, seen = start, set[str]()
            while stop < len(traces) and (traces[stop].problem_id in seen or len(seen) < problems):
                seen.add(traces[stop].problem_id)
                stop += 1
            yield Batch(traces=traces[start:stop])
            start = stop


def stored_rows(root: Path, stage_id: str, key: str) -> StageRows:
    """Return the rows of a finished stage, from the files of the state folder only.

    Raises:
        RunError: when the stage or one above it is not finished.
    """
    folder = StageFolder(root, stage_id, key)
    record, identity = folder.record(), folder.identity()
    if record is None or identity is None:
        damaged = "; ".join(map(str, folder.damage))
        raise RunError(damaged or f"{folder.path} has no finished stage; run the pipeline again: nothing is paid again")
    inputs = tuple(stored_rows(root, source, source_key) for source, source_key in identity.get("inputs", {}).items())
    return StageRows(folder, record.shards, record.gives, record.makes, record.judges, inputs)


def files_of(rows: StageRows) -> Iterator[Path]:
    """Yield the files of a stage's own tables."""
    tables = {Table.JUDGED, *(table for kind, table in TABLE_OF.items() if kind is rows.makes)}
    for table in sorted(tables):
        yield from (rows.folder.part(table, index, rows.shards) for index in range(rows.shards))


def _merge(frames: Sequence[pl.DataFrame]) -> pl.DataFrame:
    """Return the rows of several frames in order; equal rows are merged into one with all columns."""
    if len(frames) == 1:
        return frames[0]
    merged = pl.concat(frames, how="diagonal_relaxed").sort(KEYS, maintain_order=True)
    if (merged["id"] == merged["id"].shift(1)).any():
        merged = merged.group_by(KEYS, maintain_order=True).agg(pl.all().drop_nulls().first())
    return merged


def _overlay(rows: pl.DataFrame, newer: pl.DataFrame) -> pl.DataFrame:
    """Return rows with newer columns; a null in a newer column is replaced by the older value."""
    both = [name for name in newer.columns if name in rows.columns]
    older = [rows[name].alias(name) for name in both]
    stacked = rows.drop(both).hstack(newer)
    if not both:
        return stacked
    held = pl.DataFrame([series.alias(f"\0{series.name}") for series in older])
    filled = [pl.coalesce(name, f"\0{name}").alias(name) for name in both]
    return stacked.hstack(held).with_columns(filled).drop(held.columns)
