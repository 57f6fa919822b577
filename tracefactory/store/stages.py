"""The files of each stage: the identity is written first, then complete shards, and the record last.

    stages/<stage id>-<key16>/
        identity.json                          what the key was made from; written first
        problems-00003-of-00016.parquet        the text of the problems that one shard made
        traces-00003-of-00016.parquet          the text of the traces that one shard made
        judged-00003-of-00016.parquet          one line per row, made or received: kept or the reason, and declared
                                               columns; written last, with the shard's `ShardRecord` in its footer
        record.json                            totals and digests; written at the end: the stage is done

Records have checksums. A stage or shard whose record is damaged is not done, so it is made again from the completions
of the request store; the damage is in `StageFolder.damage`.

A shard is a range of problem ids, which are hashes. Shards in order are therefore sorted, and each shard of a layout is
inside one shard of a coarser layout. All tables are sorted by (problem_id, id).
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import AliasChoices, Field, ValidationError

from tracefactory.core.columns import Column, column_for
from tracefactory.core.decisions import REPLACED
from tracefactory.core.digests import combined_digest, table_digest
from tracefactory.core.files import TEMPORARY, remove_matching, whole_file
from tracefactory.core.fingerprint import digest
from tracefactory.core.rows import Frozen, Kind
from tracefactory.core.spans import Span
from tracefactory.core.tables import PLAIN_COLUMNS, Table, schema_of
from tracefactory.store.damage import Damage, reading
from tracefactory.store.part_writer import PARQUET, RowWriter, writing
from tracefactory.store.records import checked, read_record, with_checksum, write_record

FOOTER_KEY = b"tracefactory"
JUDGED_ROWS = 1 << 16
"""Rows in a row group of a `judged` table, which has no text."""
_NOT_DONE = "the stage is not done: the next run makes it again without paying"
IDENTITY = frozenset({"op", "uses", "with", "inputs"})
"""Parts of the identity of a stage in every version."""
PART = re.compile(r"^([a-z]+)-(\d{5})-of-(\d{5})\.parquet$")


def folder_name(stage_id: str, key: str) -> str:
    """Return the name of the folder of a stage: its id and the first digits of its key."""
    return f"{stage_id}-{key[:16]}"


class Tally(Frozen):
    """Counts of one shard; sums are counts of a stage. `owed` is the number of errors that the next run retries."""

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
            numbers=_sum_numbers(self.numbers, other.numbers),
            notes=tuple(dict.fromkeys((*self.notes, *other.notes))),
        )


OWED = "owed"
"""The retry of a run that tries all owed rows again."""


def to_retry(tally: Tally, retry: str) -> int:
    """Return the number of rows that a run tries again: all that are `OWED`, those of one kind, or none ("")."""
    if retry == OWED:
        return tally.owed
    return tally.reasons.get(retry, 0) if retry else 0


class ShardRecord(Frozen):
    """The inputs, the run and the result of one shard.

    `inputs` are the tokens of its input shards; `digest` is that of its own tables; `token` is made from both, so it
    changes when an input changes. `columns` are those of its `judged` table.
    """

    run: str
    inputs: Mapping[str, str]
    digest: str
    token: str
    tally: Tally
    columns: tuple[Column, ...] = ()


class StageRecord(Frozen):
    """The record of a finished stage. `digest` covers its own tables and the digests of the stages in `inputs`.

    `gives`, `makes` and `judges` are those of the operation, so that rows can be read without the pipeline.
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
    """One stage's folder; no other code writes to it."""

    def __init__(self, root: Path, stage_id: str, key: str) -> None:
        self.stage_id = stage_id
        self.key = key
        self.path = root / "stages" / folder_name(stage_id, key)
        self._damage: dict[Path, Damage] = {}

    @property
    def damage(self) -> list[Damage]:
        """The damage that this instance has met."""
        return list(self._damage.values())

    def write_identity(self, identity: Mapping[str, Any]) -> None:
        """Write what the stage's key is made from, unless it is there."""
        if self.identity() is None:
            write_record(self.path / "identity.json", identity)

    def identity(self) -> Mapping[str, Any] | None:
        """Return what the stage's key was made from, None for a stage that has not been started."""
        found = read_record(self.path / "identity.json", "it is written again by the next run of the stage", self._met)
        if found is not None and not found.keys() >= IDENTITY:
            self._met(Damage(self.path / "identity.json", "the whole file", "not an identity", _NOT_DONE))
            return None
        return found

    def record(self) -> StageRecord | None:
        """Return the record of a finished stage, None without one or with one of version 0.1 (other tables)."""
        path = self.path / "record.json"
        found = read_record(path, _NOT_DONE, self._met)
        if found is None or ({"stage", "key", "digest"} <= found.keys() and "makes" not in found):
            return None
        try:
            return StageRecord.model_validate(found)
        except ValueError:
            self._met(Damage(path, "the whole file", "not the record of a stage", _NOT_DONE))
            return None

    def write_record(self, record: StageRecord) -> None:
        write_record(self.path / "record.json", record.model_dump(mode="json"))

    def _met(self, damage: Damage) -> None:
        self._damage[damage.path] = damage

    def reopen(self, shards: int) -> None:
        """Prepare the folder for writing: remove the record, incomplete files and parts of another shard layout."""
        (self.path / "record.json").unlink(missing_ok=True)

        def is_left_over(name: str) -> bool:
            match = PART.match(name)
            return name.startswith(TEMPORARY) or (match is not None and int(match[3]) != shards)

        remove_matching(self.path, is_left_over)

    def part(self, table: Table, index: int, count: int) -> Path:
        return self.path / f"{table.value}-{index:05d}-of-{count:05d}.parquet"

    def shard_record(self, index: int, count: int) -> ShardRecord | None:
        """Return the record of a shard, None while it is not done."""
        path = self.part(Table.JUDGED, index, count)
        try:
            with reading(path):
                footer = (pq.read_schema(path).metadata or {})[FOOTER_KEY]
            return ShardRecord.model_validate(checked(footer))
        except FileNotFoundError:
            return None
        except ValueError as error:
            what = "its shard record is damaged" if isinstance(error, ValidationError) else str(error)
            self._met(Damage(path, "footer", what, "the shard is not done: it is made again without paying"))
            return None

    def finished_shards(self) -> list[tuple[int, int]]:
        """Return the number of every finished shard, with the number of shards of its layout."""
        matches = (PART.match(path.name) for path in self.path.glob(f"{Table.JUDGED.value}-*.parquet"))
        return sorted((int(match[2]), int(match[3])) for match in matches if match is not None)

    def write_shard(self, index: int, count: int, tables: Tables, run: str, inputs: Mapping[str, str]) -> ShardRecord:
        """Commit a shard; its `judged` table with the record is written last."""
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
        content = with_checksum(record.model_dump(mode="json"))
        table = judged.replace_schema_metadata({FOOTER_KEY: json.dumps(content, ensure_ascii=False).encode()})
        path = self.part(Table.JUDGED, index, count)
        with writing(path), whole_file(path) as temporary:
            pq.write_table(table, temporary, row_group_size=JUDGED_ROWS, **PARQUET)
        return record


class Tables:
    """Collects the tables of one shard: made rows are written at once; `judged`, which is small, is kept in memory.

    A context manager that removes uncommitted files.
    """

    def __init__(self, folder: StageFolder, index: int, count: int) -> None:
        self.folder, self.index, self.shards = folder, index, count
        self.numbers: dict[str, float] = {}
        self.notes: list[str] = []
        self.columns: dict[str, Column] = {}
        self.digests: list[str] = []
        self._judged: list[pa.Table] = []
        self._writers: dict[Table, RowWriter] = {}

    def __enter__(self) -> Tables:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for writer in self._writers.values():
            writer.abandon()

    def add_made(self, table: Table, rows: pa.Table) -> None:
        """Append made rows, which must be sorted after all rows added before."""
        self._writer(table).add(rows)
        self.digests.append(table_digest(rows))

    def add_judged(self, judged: pa.Table, declared: Iterable[Column]) -> None:
        """Append judgements, which must be sorted after those added before; `declared` describe their values."""
        self._judged.append(judged)
        names = [name for name in judged.column_names if name not in PLAIN_COLUMNS]
        declared = list(declared)
        self.columns |= {name: column_for(name, declared) for name in names}

    def count(self, numbers: Mapping[str, float], notes: Iterable[str] = ()) -> None:
        """Add to the numbers of the shard, and add notes for the user."""
        self.numbers = _sum_numbers(self.numbers, numbers)
        self.notes += notes

    def judged(self) -> pa.Table:
        empty = schema_of(Table.JUDGED).empty_table()
        return pa.concat_tables([empty, *self._judged], promote_options="default")

    def expect(self, tables: Sequence[Table]) -> None:
        """Ensure that each of these tables is written, even when it is empty."""
        for table in tables:
            self._writer(table)

    def commit(self) -> None:
        """Commit the tables of made rows."""
        for writer in self._writers.values():
            writer.commit()

    def _writer(self, table: Table) -> RowWriter:
        if table not in self._writers:
            self._writers[table] = RowWriter(self.folder.part(table, self.index, self.shards), schema_of(table))
        return self._writers[table]


def tally_of(judged: pa.Table, numbers: Mapping[str, float], notes: Iterable[str]) -> Tally:
    """Return the counts of a `judged` table. A row that was replaced by a made row counts once, as the made row."""
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
    """Return a token for the rows of a span of a stage, from the tokens of its shards."""
    records = [folder.shard_record(index, layout) for index in span.parts(layout)]
    return digest([record.token for record in records if record is not None])


def stage_digest(own: Iterable[str], inputs: Mapping[str, str]) -> str:
    """Return the digest of a stage's rows from those of its shards and inputs; it does not depend on the layout."""
    return digest({"own": combined_digest(own), "inputs": dict(inputs)})


def _sum_numbers(one: Mapping[str, float], two: Mapping[str, float]) -> dict[str, float]:
    return {name: one.get(name, 0) + two.get(name, 0) for name in sorted({*one, *two})}


def damage_of_part(path: Path) -> list[Damage]:
    """Return the damage of a part that cannot be decoded completely."""
    place = "footer"
    try:
        with reading(path):
            file = pq.ParquetFile(path, page_checksum_verification=True)
            for number in range(file.num_row_groups):
                place = f"row group {number}"
                file.read_row_group(number).validate(full=True)
    except FileNotFoundError:
        return [Damage(path, "the whole file", "it is missing", _NOT_DONE)]
    except ValueError as error:
        return [Damage(path, place, str(error), _NOT_DONE)]
    return []


def parts_of(folder: Path) -> Iterator[Path]:
    """Yield the parts of a stage's folder."""
    yield from (path for path in sorted(folder.glob("*.parquet")) if PART.match(path.name))
