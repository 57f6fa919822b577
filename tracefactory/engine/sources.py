"""Write the rows of a source as shards, by an external sort with sorted runs on disk above the memory limit."""

from __future__ import annotations

import tempfile
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import pyarrow as pa

from tracefactory.core.decisions import Made
from tracefactory.core.rows import Trace, problem_id_of
from tracefactory.core.spans import Span
from tracefactory.core.tables import KEYS, TABLE_OF, Table, judged_table, judgement_of, made_table, schema_of
from tracefactory.engine.shards import PROBLEMS_PER_SHARD, ShardJob
from tracefactory.store.stages import ShardRecord, Tables

MIN_SHARDS, MAX_SHARDS = 8, 256
_BATCH_ROWS = 4096
_MEMORY_BYTES = 128 << 20


def read_source(job: ShardJob, made: Iterator[Made], shards: int | None) -> list[ShardRecord]:
    """Write all shards of a source's stage from rows in the source's order.

    Args:
        job: the stage; its index is ignored.
        made: the rows, including duplicates and rejected rows.
        shards: the number of shards; None derives it from the number of problems.
    """
    declared = job.op.columns(job.stage, job.pipeline)
    folder = job.rows.folder
    folder.path.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".tmp-runs-", dir=folder.path) as scratch:
        runs = _SortedRuns(Path(scratch))
        problems: set[int] = set()
        while batch := list(islice(made, _BATCH_ROWS)):
            owners = {one.row.id: problem_id_of(one.row) for one in batch}
            runs.add(Table.JUDGED, judged_table(list(map(judgement_of, batch)), owners, declared))
            traces = [one for one in batch if isinstance(one.row, Trace)]
            if traces:
                runs.add(Table.TRACES, made_table(Table.TRACES, traces))
                new = {
                    one.row.problem.id: one.row.problem for one in traces if int(one.row.problem_id, 16) not in problems
                }
                rows = [Made(problem) for problem in new.values()]
            else:
                rows = batch
            problems |= {int(problem_id_of(one.row), 16) for one in rows if one.decision.keep}
            runs.add(Table.PROBLEMS, made_table(Table.PROBLEMS, rows))
        count = shards or shards_for(len(problems))
        folder.reopen(count)
        records = []
        for index in range(count):
            span = Span.of(index, count)
            with Tables(folder, index, count) as tables:
                for table in runs.tables - {Table.JUDGED}:
                    tables.add_made(table, runs.slice(table, span))
                tables.add_judged(runs.slice(Table.JUDGED, span), declared)
                tables.expect([Table.PROBLEMS, TABLE_OF[job.op.makes]])
                records.append(folder.write_shard(index, count, tables, job.run, {}))
        return records


def shards_for(problems: int) -> int:
    """Return a power of two, with about PROBLEMS_PER_SHARD problems per shard."""
    wanted = max(MIN_SHARDS, -(-problems // PROBLEMS_PER_SHARD))
    return min(MAX_SHARDS, 1 << (wanted - 1).bit_length())


class _SortedRuns:
    """Collects rows of tables in any order as sorted runs, which are written to files above the memory limit."""

    def __init__(self, scratch: Path) -> None:
        self._scratch = scratch
        self._runs: dict[Table, list[_SortedRun]] = {}
        self._pending: dict[Table, list[pa.Table]] = {}
        self._spilled = 0

    @property
    def tables(self) -> set[Table]:
        return {*self._runs, *self._pending}

    def add(self, table: Table, rows: pa.Table) -> None:
        self._pending.setdefault(table, []).append(rows)
        if sum(part.nbytes for part in self._pending[table]) > _MEMORY_BYTES:
            self._spilled += 1
            path = self._scratch / f"{table.value}-{self._spilled}.arrow"
            run = _sorted_table(table, self._pending.pop(table))
            with pa.ipc.new_file(path, run.schema) as writer:
                writer.write_table(run)
            self._runs.setdefault(table, []).append(_SortedRun(pa.ipc.open_file(pa.memory_map(str(path))).read_all()))

    def slice(self, table: Table, span: Span) -> pa.Table:
        """Return the sorted rows of a span; call it after all rows have been added."""
        if table in self._pending:
            self._runs.setdefault(table, []).append(_SortedRun(_sorted_table(table, self._pending.pop(table))))
        return _sorted_table(table, [run.slice(span) for run in self._runs.get(table, ())])


class _SortedRun:
    """A sorted table that can be sliced by problem."""

    def __init__(self, rows: pa.Table) -> None:
        self.rows = rows
        self._ids: Sequence[str] = _Ids(rows.column("problem_id").combine_chunks())

    def slice(self, span: Span) -> pa.Table:
        start, stop = bisect_left(self._ids, span.first), bisect_right(self._ids, span.last)
        return self.rows.slice(start, stop - start)


class _Ids(Sequence[str]):
    """A column of ids as a sequence for bisection, without a copy."""

    def __init__(self, ids: pa.StringArray) -> None:
        self._ids = ids

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, index: int) -> str:  # type: ignore[override]  # slices are not used
        return str(self._ids[index])


def _sorted_table(table: Table, parts: Sequence[pa.Table]) -> pa.Table:
    rows = pa.concat_tables([schema_of(table).empty_table(), *parts], promote_options="default")
    return rows.sort_by([(key, "ascending") for key in KEYS])
