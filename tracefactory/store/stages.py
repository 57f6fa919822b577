"""Everything on disk for stages: identity first, atomic shards, the record last.

    stages/<stage id>-<key16>/
        identity.json                       what the key was made from; written first
        part-00003-of-00016.parquet         kept rows of one shard; its footer holds the shard's `ShardRecord`
        dropped/part-00003-of-00016.parquet rows not passed on, with reasons; written before the kept rows
        record.json                         totals and digests; written last: with it the stage is done

Digests are of rows, not of bytes: the sum over rows of sha256(canonical JSON) modulo 2**256. They depend neither on the
order of rows nor on the number of shards nor on library versions.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from tracefactory.core.files import TEMPORARY, read_json, remove_matching, whole_file, write_json
from tracefactory.core.fingerprint import canonical
from tracefactory.core.op import Rows, ShardResult, WholeInput
from tracefactory.core.schema import (
    DROPPED_SCHEMA,
    PROBLEM_SCHEMA,
    TRACE_SCHEMA,
    Dropped,
    Frozen,
    Problem,
    Row,
    Trace,
    problems_from,
    to_table,
    traces_from,
)

FOOTER_KEY = b"tracefactory"
VOLATILE = ("seconds",)  # wall times inside a verdict: true, but not what the row is
_PART = re.compile(r"^part-(\d{5})-of-(\d{5})\.parquet$")


class Tally(Frozen):
    """Counts of one shard, or of a whole stage when added up."""

    rows_in: int = 0
    kept: int = 0
    dropped: int = 0
    errors: int = 0
    retryable: int = 0  # errors that another run would try again
    reasons: Mapping[str, int] = Field(default_factory=dict)
    numbers: Mapping[str, float] = Field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __add__(self, other: Tally) -> Tally:
        return Tally(
            rows_in=self.rows_in + other.rows_in,
            kept=self.kept + other.kept,
            dropped=self.dropped + other.dropped,
            errors=self.errors + other.errors,
            retryable=self.retryable + other.retryable,
            reasons=_added(self.reasons, other.reasons),
            numbers=_added(self.numbers, other.numbers),
            notes=tuple(dict.fromkeys((*self.notes, *other.notes))),
        )


class ShardRecord(Frozen):
    """What one shard was made from, by which run, and what came of it."""

    run: str
    inputs: Mapping[str, str]
    digest: str
    tally: Tally


class StageRecord(Frozen):
    """A finished stage. `inputs` are the digests of the input stages as they were read."""

    stage: str
    key: str
    shards: int
    inputs: Mapping[str, str]
    digest: str
    tally: Tally
    finished: float


def rows_digest(rows: Iterable[Row | Dropped]) -> str:
    """Digest rows without regard to their order (see the module's docstring)."""
    total = 0
    for row in rows:
        plain = row.model_dump(mode="json")
        if isinstance(verdict := plain.get("verdict"), dict):
            for name in VOLATILE:
                verdict.pop(name, None)
        total += int.from_bytes(hashlib.sha256(canonical(plain).encode()).digest(), "big")
    return f"{total % 2**256:064x}"


def combined_digest(digests: Iterable[str]) -> str:
    """Return the digest of all rows from the digests of their parts."""
    return f"{sum(int(one, 16) for one in digests) % 2**256:064x}"


class StageFolder:
    """One stage's folder: the only code that reads or writes it."""

    def __init__(self, root: Path, stage_id: str, key: str, gives: Rows) -> None:
        self.stage_id = stage_id
        self.key = key
        self.gives = gives
        self.path = root / "stages" / f"{stage_id}-{key[:16]}"

    def write_identity(self, identity: Mapping[str, Any]) -> None:
        if not (self.path / "identity.json").exists():
            write_json(self.path / "identity.json", identity)

    def identity(self) -> Mapping[str, Any] | None:
        """Return what the stage's key was made from; None for a stage that has not begun."""
        found: Mapping[str, Any] | None = read_json(self.path / "identity.json")
        return found

    def record(self) -> StageRecord | None:
        found = read_json(self.path / "record.json")
        return None if found is None else StageRecord.model_validate(found)

    def write_record(self, record: StageRecord) -> None:
        write_json(self.path / "record.json", record.model_dump(mode="json"))

    def reopen(self, shards: int) -> None:
        """Make the folder ready for writing: no record, no torn files, no parts of another shard layout."""
        (self.path / "record.json").unlink(missing_ok=True)
        for folder in (self.path, self.path / "dropped"):
            remove_matching(folder, lambda name: name.startswith(TEMPORARY) or _other_layout(name, shards))

    def parts(self) -> list[Path]:
        """Return the shards that exist, in order."""
        return sorted(path for path in self.path.glob("part-*.parquet") if _PART.match(path.name))

    def write_shard(
        self, run: str, index: int, count: int, inputs: Mapping[str, str], result: ShardResult
    ) -> ShardRecord:
        """Commit one shard: dropped rows first, kept rows last; both sorted by id."""
        result.check(f"{self.stage_id}, shard {index}")
        kept = sorted(result.kept, key=lambda row: row.id)
        dropped = sorted(result.dropped, key=lambda row: (row.id, row.reason))
        record = ShardRecord(run=run, inputs=dict(inputs), digest=rows_digest(kept), tally=_tally(result))
        _write(self.path / "dropped" / part_name(index, count), to_table(dropped, DROPPED_SCHEMA))
        footer = {FOOTER_KEY: record.model_dump_json().encode()}
        schema = PROBLEM_SCHEMA if self.gives is Rows.PROBLEMS else TRACE_SCHEMA
        _write(self.path / part_name(index, count), to_table(kept, schema).replace_schema_metadata(footer))
        return record

    def shard_record(self, index: int, count: int) -> ShardRecord | None:
        path = self.path / part_name(index, count)
        if not path.exists():
            return None
        footer = pq.read_schema(path).metadata[FOOTER_KEY]
        return ShardRecord.model_validate_json(footer)

    def read_shard(self, index: int, count: int) -> list[Row]:
        """Return the kept rows of shard `index` of `count`, whatever layout they were written in."""
        rows = [row for part in self.parts() if _may_hold(part.name, index, count) for row in self._rows(part)]
        return [row for row in rows if shard_of(problem_id_of(row), count) == index]

    def read_all(self) -> Iterator[Row]:
        """Yield the kept rows of a finished stage, shard by shard; none where it is not finished."""
        record = self.record()
        count = record.shards if record else 0
        for index in range(count):
            yield from self.read_shard(index, count)

    def read_dropped(self) -> Iterator[Dropped]:
        for path in sorted((self.path / "dropped").glob("part-*.parquet")):
            for row in pq.read_table(path, schema=DROPPED_SCHEMA).to_pylist():
                yield Dropped.model_validate(row)

    def _rows(self, path: Path) -> list[Row]:
        table = pq.read_table(path)
        return list(problems_from(table) if self.gives is Rows.PROBLEMS else traces_from(table))


class StoredInput(WholeInput):
    """All shards of a finished stage, read one at a time."""

    def __init__(self, folder: StageFolder) -> None:
        self.folder = folder
        self.stage_id = folder.stage_id

    def shards(self, count: int) -> Iterator[Sequence[Row]]:
        return (self.folder.read_shard(index, count) for index in range(count))

    def columns(self, *selected: pl.Expr) -> pl.DataFrame:
        return pl.scan_parquet(self.folder.parts()).select(*selected).collect()


def part_name(index: int, count: int) -> str:
    return f"part-{index:05d}-of-{count:05d}.parquet"


def shard_of(problem_id: str, count: int) -> int:
    """Return the shard of a problem: its id is a hash already, so its leading digits decide."""
    return int(hashlib.sha256(problem_id.encode()).hexdigest()[:8], 16) % count


def problem_id_of(row: Row) -> str:
    return row.problem.id if isinstance(row, Trace) else row.id


def split_by_shard(rows: Iterable[Row], count: int) -> list[list[Row]]:
    """Deal rows to their shards."""
    shards: list[list[Row]] = [[] for _ in range(count)]
    for row in rows:
        shards[shard_of(problem_id_of(row), count)].append(row)
    return shards


def dropped_row(
    row: Problem | Trace, stage: str, reason: str, detail: str | None = None, *, error: bool = False
) -> Dropped:
    """Describe a row that `stage` does not pass on."""
    return Dropped(
        id=row.id,
        problem_id=problem_id_of(row),
        stage=stage,
        reason=reason,
        detail=detail,
        error=error,
        row=row.model_dump_json(),
    )


def _tally(result: ShardResult) -> Tally:
    return Tally(
        rows_in=result.rows_in,
        kept=len(result.kept),
        dropped=sum(not row.error for row in result.dropped),
        errors=sum(row.error for row in result.dropped),
        retryable=result.retryable,
        reasons=dict(Counter(row.reason for row in result.dropped)),
        numbers=dict(result.numbers),
        notes=tuple(result.notes),
    )


def _added(one: Mapping[str, Any], two: Mapping[str, Any]) -> dict[str, Any]:
    return {name: one.get(name, 0) + two.get(name, 0) for name in sorted({*one, *two})}


def _other_layout(name: str, shards: int) -> bool:
    match = _PART.match(name)
    return match is not None and int(match.group(2)) != shards


def _may_hold(name: str, index: int, count: int) -> bool:
    """Tell whether a part can hold rows of shard `index` of `count`; both layouts are powers of two."""
    match = _PART.match(name)
    assert match is not None
    fewer = min(int(match.group(2)), count)
    return int(match.group(1)) % fewer == index % fewer


def _write(path: Path, table: pa.Table) -> None:
    with whole_file(path) as temporary:
        pq.write_table(table, temporary, compression="zstd", row_group_size=4096)
