"""What is on disk of each stage: identity first, whole shards, the record last.

    stages/<stage id>-<key16>/
        identity.json                          what the key was made from; written first
        problems-00003-of-00016.parquet        the text of the problems that one shard made
        traces-00003-of-00016.parquet          the text of the traces that one shard made
        judged-00003-of-00016.parquet          one line per row, made or given: kept or why not, and declared columns;
                                               written last, its footer holds the shard's `ShardRecord`
        record.json                            totals and digests; written last of all: with it the stage is done

A shard is a range of the hash that a problem's id is, so that shards in order are sorted, and a shard of one layout
lies in one of a coarser layout. All tables are sorted by (problem_id, id).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import AliasChoices, Field

from tracefactory.core.columns import Column
from tracefactory.core.decisions import REPLACED
from tracefactory.core.digests import combined_digest, table_digest
from tracefactory.core.files import TEMPORARY, read_json, remove_matching, whole_file, write_json
from tracefactory.core.fingerprint import digest
from tracefactory.core.rows import Frozen, Kind
from tracefactory.core.spans import Span
from tracefactory.core.tables import Table, schema_of

FOOTER_KEY = b"tracefactory"
GROUP_BYTES, GROUP_ROWS = 16 << 20, 4096
"""What a row group of text holds at most: it is what is read at once."""
JUDGED_ROWS = 1 << 16
"""Rows in a group of a `judged` table, which holds no text."""
_PART = re.compile(r"^([a-z]+)-(\d{5})-of-(\d{5})\.parquet$")


class Tally(Frozen):
    """Counts of one shard, or of a whole stage when added up. `owed` of the errors are for another run to try again."""

    rows_in: int = 0
    kept: int = 0
    dropped: int = 0
    errors: int = 0
    owed: int = Field(default=0, validation_alias=AliasChoices("owed", "retryable"))  # its name in version 0.1
    reasons: Mapping[str, int] = Field(default_factory=dict)
    numbers: Mapping[str, float] = Field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __add__(self, other: Tally) -> Tally:
        return Tally(
            rows_in=self.rows_in + other.rows_in,
            kept=self.kept + other.kept,
            dropped=self.dropped + other.dropped,
            errors=self.errors + other.errors,
            owed=self.owed + other.owed,
            reasons=dict(Counter(self.reasons) + Counter(other.reasons)),
            numbers=_added(self.numbers, other.numbers),
            notes=tuple(dict.fromkeys((*self.notes, *other.notes))),
        )


class ShardRecord(Frozen):
    """What one shard was made from, by which run, and what came of it.

    `inputs` are the tokens of the shards it was made from; `digest` is of its own tables; `token` is of both, so that
    it is another when anything above changed. `columns` are those that its `judged` table has.
    """

    run: str
    inputs: Mapping[str, str]
    digest: str
    token: str
    tally: Tally
    columns: tuple[Column, ...] = ()


class StageRecord(Frozen):
    """A finished stage. `digest` is of all its rows: of its own tables, and of the stages in `inputs` as they were.

    `gives`, `makes` and `judges` are those of the operation, so that its rows can be read without the pipeline.
    """

    stage: str
    key: str
    gives: Kind
    makes: Kind
    judges: bool
    shards: int
    inputs: Mapping[str, str]
    digest: str
    tally: Tally
    columns: tuple[Column, ...] = ()
    finished: float


class StageFolder:
    """One stage's folder: the only code that writes it."""

    def __init__(self, root: Path, stage_id: str, key: str) -> None:
        self.stage_id = stage_id
        self.key = key
        self.path = root / "stages" / f"{stage_id}-{key[:16]}"

    def write_identity(self, identity: Mapping[str, Any]) -> None:
        if not (self.path / "identity.json").exists():
            write_json(self.path / "identity.json", identity)

    def identity(self) -> Mapping[str, Any] | None:
        """Return what the stage's key was made from; None for a stage that has not begun."""
        found: Mapping[str, Any] | None = read_json(self.path / "identity.json")
        return found

    def record(self) -> StageRecord | None:
        """Return the record of a finished stage; one of version 0.1, whose tables were others, counts as none."""
        found = read_json(self.path / "record.json")
        return None if found is None or "makes" not in found else StageRecord.model_validate(found)

    def write_record(self, record: StageRecord) -> None:
        write_json(self.path / "record.json", record.model_dump(mode="json"))

    def reopen(self, shards: int) -> None:
        """Make the folder ready for writing: no record, no torn files, no parts of another shard layout."""
        (self.path / "record.json").unlink(missing_ok=True)
        remove_matching(self.path, lambda name: name.startswith(TEMPORARY) or _other_layout(name, shards))

    def part(self, table: Table, index: int, count: int) -> Path:
        return self.path / f"{table.value}-{index:05d}-of-{count:05d}.parquet"

    def shard_record(self, index: int, count: int) -> ShardRecord | None:
        """Return the record of a shard; None while it is not done."""
        try:
            footer = pq.read_schema(self.part(Table.JUDGED, index, count)).metadata[FOOTER_KEY]
        except FileNotFoundError:
            return None
        return ShardRecord.model_validate_json(footer)

    def shards_done(self) -> int:
        """Return how many shards are there, finished or not as a stage."""
        return sum(1 for _ in self.path.glob(f"{Table.JUDGED.value}-*.parquet"))

    def write_shard(self, index: int, count: int, tables: Tables, run: str, inputs: Mapping[str, str]) -> ShardRecord:
        """Commit a shard whose made rows are in `tables` already; its `judged` table goes last, with the record."""
        judged = tables.judged()
        own = combined_digest([*tables.digests, table_digest(judged)])
        record = ShardRecord(
            run=run,
            inputs=dict(inputs),
            digest=own,
            token=digest({"own": own, "inputs": dict(inputs)}),
            tally=tally_of(judged, tables.numbers, tables.notes),
            columns=tuple(tables.columns[name] for name in judged.column_names if name in tables.columns),
        )
        tables.commit()
        footer = {FOOTER_KEY: record.model_dump_json().encode()}
        with whole_file(self.part(Table.JUDGED, index, count)) as temporary:
            table = judged.replace_schema_metadata(footer)
            pq.write_table(table, temporary, compression="zstd", row_group_size=JUDGED_ROWS)
        return record


class Tables:
    """Collects the tables of one shard: made rows go to disk as they come, `judged` is held, it is small.

    Used as a context manager: what was not committed is removed.
    """

    def __init__(self, folder: StageFolder, index: int, count: int) -> None:
        self.folder, self.index, self.shards = folder, index, count
        self.numbers: dict[str, float] = {}
        self.notes: list[str] = []
        self.columns: dict[str, Column] = {}
        self.digests: list[str] = []
        self._judged: list[pa.Table] = []
        self._writers: dict[Table, _RowWriter] = {}

    def __enter__(self) -> Tables:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for writer in self._writers.values():
            writer.abandon()

    def add_made(self, table: Table, rows: pa.Table) -> None:
        """Append rows that were made; what is added must come behind what was added before."""
        if table not in self._writers:
            self._writers[table] = _RowWriter(self.folder.part(table, self.index, self.shards), schema_of(table))
        self._writers[table].add(rows)
        self.digests.append(table_digest(rows))

    def add_judged(self, judged: pa.Table, columns: Iterable[Column]) -> None:
        """Append judgements, sorted behind those that were added before; `columns` are what their values are."""
        self._judged.append(judged)
        self.columns |= {column.name: column for column in columns}

    def count(self, numbers: Mapping[str, float], notes: Iterable[str] = ()) -> None:
        """Add numbers to those of the shard, and sentences that a person must see."""
        self.numbers = _added(self.numbers, numbers)
        self.notes += notes

    def judged(self) -> pa.Table:
        empty = schema_of(Table.JUDGED).empty_table()
        return pa.concat_tables([empty, *self._judged], promote_options="default")

    def expect(self, tables: Sequence[Table]) -> None:
        """Have an empty table written for each of these that no row was made for."""
        for table in tables:
            if table not in self._writers:
                self._writers[table] = _RowWriter(self.folder.part(table, self.index, self.shards), schema_of(table))

    def commit(self) -> None:
        """Put the made rows in place."""
        for writer in self._writers.values():
            writer.commit()


class _RowWriter:
    """Writes one part row group by row group; it appears whole or not at all."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._whole = whole_file(path)
        self._writer = pq.ParquetWriter(self._whole.__enter__(), schema, compression="zstd")
        self._held: list[pa.Table] = []
        self._rows = self._bytes = 0
        self._open = True

    def add(self, rows: pa.Table) -> None:
        # A batch is cut where row groups end, so that one group never holds much more than is to be read at once.
        step = max(1, min(GROUP_ROWS, GROUP_BYTES * max(rows.num_rows, 1) // max(rows.nbytes, 1)))
        for start in range(0, rows.num_rows, step):
            piece = rows.slice(start, step)
            if self._rows + piece.num_rows > GROUP_ROWS or self._bytes + piece.nbytes > GROUP_BYTES:
                self._flush()
            self._held.append(piece)
            self._rows += piece.num_rows
            self._bytes += piece.nbytes

    def commit(self) -> None:
        self._flush()
        self._writer.close()
        self._open = False
        self._whole.__exit__(None, None, None)

    def abandon(self) -> None:
        if self._open:
            self._open = False
            self._writer.close()
            error = RuntimeError("the shard was not committed")
            self._whole.__exit__(type(error), error, None)

    def _flush(self) -> None:
        if self._held:
            table = pa.concat_tables(self._held)
            self._writer.write_table(table, row_group_size=max(table.num_rows, 1))
            self._held, self._rows, self._bytes = [], 0, 0


def tally_of(judged: pa.Table, numbers: Mapping[str, float], notes: Iterable[str]) -> Tally:
    """Count what a `judged` table says. A row that was replaced by a made one counts once, as what was made of it."""
    lines = pl.DataFrame(judged.select(["kept", "failed", "owed", "reason"]))
    lines = lines.filter(pl.col("reason").ne_missing(REPLACED))
    kept, errors = int(lines["kept"].sum()), int(lines["failed"].sum())
    reasons = lines.filter(~pl.col("kept"))["reason"].value_counts()
    return Tally(
        rows_in=lines.height,
        kept=kept,
        dropped=lines.height - kept - errors,
        errors=errors,
        owed=int(lines["owed"].sum()),
        reasons=dict(sorted(reasons.iter_rows())),
        numbers=dict(numbers),
        notes=tuple(dict.fromkeys(notes)),
    )


def input_token(folder: StageFolder, layout: int, span: Span) -> str:
    """Return what stands for the rows of a span of a stage: the tokens of the shards that hold it."""
    records = [folder.shard_record(index, layout) for index in span.parts(layout)]
    return digest([record.token for record in records if record is not None])


def stage_digest(own: Iterable[str], inputs: Mapping[str, str]) -> str:
    """Return the digest of a stage's rows from the digests of its shards and of its inputs; the layout is not in it."""
    return digest({"own": combined_digest(own), "inputs": dict(inputs)})


def _added(one: Mapping[str, float], two: Mapping[str, float]) -> dict[str, float]:
    return {name: one.get(name, 0) + two.get(name, 0) for name in sorted({*one, *two})}


def _other_layout(name: str, shards: int) -> bool:
    match = _PART.match(name)
    return match is not None and int(match[3]) != shards


def parts_of(folder: Path) -> Iterator[Path]:
    """Yield the parts of a stage's folder."""
    yield from (path for path in sorted(folder.glob("*.parquet")) if _PART.match(path.name))
