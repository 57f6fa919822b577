"""Process the rows of a shard in batches, in order, and check that no row is lost."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import polars as pl
import pyarrow as pa

from tracefactory.core.batching import AT_ONCE
from tracefactory.core.columns import VERDICT, Column, column_for
from tracefactory.core.decisions import REPLACED
from tracefactory.core.pipeline import Pipeline, StageSpec
from tracefactory.core.rows import Kind, problem_id_of
from tracefactory.core.spans import Span
from tracefactory.core.stage import Batch, Decided, Host, Result, Services, Stage, stage_of
from tracefactory.core.tables import (
    PLAIN_COLUMNS,
    TABLE_OF,
    Table,
    judged_table,
    judgement_of,
    made_table,
    schema_of,
)
from tracefactory.engine.backlog import Backlog
from tracefactory.store.rows import StageRows
from tracefactory.store.stages import ShardRecord, Tables

BATCH_PROBLEMS = {Host.MODEL: 64, Host.CPU: 512}
"""Problems in one batch; fewer for stages with slow requests."""
PROBLEMS_PER_SHARD = 512
MODEL_SHARDS = 8
"""The fewest concurrent shards of one model's stages; see `shards_in_progress`."""
SPARE = 8
"""Rows in progress for each request in flight. With few, no row is left to ask for while shards wait for their last."""
BATCHES_AT_ONCE = {Host.MODEL: 8, Host.CPU: 1}
KEPT = 2
"""Batches that are begun before the results of the first are written, as a multiple of those that are worked on."""


@dataclass(frozen=True)
class ShardJob:
    """One shard of one stage: its output and its inputs."""

    stage: StageSpec[Any]
    pipeline: Pipeline
    rows: StageRows
    index: int
    run: str
    inputs: Mapping[str, str]

    @property
    def op(self) -> Stage[Any]:
        return stage_of(self.stage)

    @property
    def span(self) -> Span:
        return Span.of(self.index, self.rows.shards)

    @property
    def input_rows(self) -> StageRows:
        """The input rows of the stage, of all inputs."""
        return combined_inputs(self.rows)


def combined_inputs(rows: StageRows) -> StageRows:
    """Return the rows of all inputs of a stage, combined."""
    if len(rows.inputs) == 1:
        return rows.inputs[0]
    first = rows.inputs[0]
    return _Union(first.folder, first.shards, first.gives, Kind.NONE, True, rows.inputs)


class _Union(StageRows):
    """The combined rows of several stages, without decisions."""

    def judged(self, span: Span, wanted: frozenset[str] | None = None) -> pl.DataFrame:
        return self._rows(span, wanted).with_columns(kept=pl.lit(value=True))


def shards_in_progress(concurrency: int) -> int:
    """Return how many shards of one model's stages are worked on at once, for a number of requests in flight."""
    return max(MODEL_SHARDS, -(-SPARE * concurrency // PROBLEMS_PER_SHARD))


async def work_on_rows(
    job: ShardJob,
    services: Services,
    live: MutableMapping[str, float],
    look_at: Callable[[str, Batch, Result], None],
    backlog: Backlog | None = None,
) -> ShardRecord:
    """Process the rows of a shard in batches, and commit the rows and decisions of the stage.

    Stages with slow requests process several batches concurrently; results are written in order, and batches that are
    finished before an earlier one are kept meanwhile. When a batch fails, the others are awaited, so that no response
    in flight is lost. `live` are numbers for the display: `at_most` is an upper bound on the requests for the rows so
    far, corrected when a batch is finished. `look_at` is given the stage, and every batch with its result; what it
    raises ends the shard. `backlog` says when a batch may begin; without one, a model gets all requests at once.
    """
    op, declared = job.op, known_columns(job)
    asks = op.asks(job.stage, job.pipeline) is not None
    at_once = AT_ONCE if asks and backlog is None else BATCHES_AT_ONCE[op.host]
    place = 0 if backlog is None else backlog.shard()
    running: deque[tuple[Batch, int, asyncio.Task[Result]]] = deque()
    with Tables(job.rows.folder, job.index, job.rows.shards) as tables:

        async def finish_first() -> None:
            batch, bound, task = running.popleft()
            result = await task
            if bound:
                live["at_most"] += result.numbers.get("requests", 0) - bound
            _check(job, batch, result)
            look_at(job.stage.id, batch, result)
            add_result(tables, op, result, batch, declared)

        try:
            batches = job.input_rows.batches(job.span, BATCH_PROBLEMS[op.host])
            while (batch := await asyncio.to_thread(next, batches, None)) is not None:
                bound = sum(one.requests for one in op.at_most(job.stage, job.pipeline, batch).values())
                live["at_most"] += bound
                work = partial(op.run, job.stage, batch, services)
                task = (
                    asyncio.create_task(work())
                    if backlog is None
                    else await backlog.begin(place, len(batch.rows), work)
                )
                running.append((batch, bound, task))
                while running and (running[0][2].done() or len(running) >= KEPT * at_once):
                    await finish_first()
                await _fewer({task for _, _, task in running if not task.done()}, at_once)
            while running:
                await finish_first()
        except asyncio.CancelledError:
            for _, _, task in running:
                task.cancel()
            raise
        finally:
            await asyncio.gather(*(task for _, _, task in running), return_exceptions=True)
        if op.makes is not Kind.NONE:
            tables.expect([TABLE_OF[op.makes]])
        return job.rows.folder.write_shard(job.index, job.rows.shards, tables, job.run, job.inputs)


async def _fewer(tasks: set[asyncio.Task[Result]], limit: int) -> None:
    """Wait until fewer than `limit` of the tasks are left."""
    while len(tasks) >= limit:
        _, tasks = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)


def work_on_columns(job: ShardJob) -> ShardRecord:
    """Let a stage decide about the rows of a shard from columns."""
    wanted = job.op.reads(job.stage, job.pipeline)
    frame = columns_of(job.input_rows, job.span, wanted, known_columns(job))
    decided = job.op.decide(job.stage, frame, job.pipeline)
    if not decided.frame["id"].equals(frame["id"]):
        raise AssertionError(f"{job.stage.id}: its decisions do not match its input rows: rows were lost")
    return write_decided(job, decided)


def write_decided(job: ShardJob, decided: Decided) -> ShardRecord:
    """Commit the decisions of a stage about the rows of a shard."""
    declared = known_columns(job)
    with Tables(job.rows.folder, job.index, job.rows.shards) as tables:
        tables.add_judged(_judged(decided, declared), declared)
        tables.count(decided.numbers, decided.notes)
        return job.rows.folder.write_shard(job.index, job.rows.shards, tables, job.run, job.inputs)


def columns_of(rows: StageRows, span: Span, wanted: Iterable[str], declared: Iterable[Column] = ()) -> pl.DataFrame:
    """Return columns of the rows of a span, and columns of their problems as `problem.<name>`.

    Missing columns are null, with their declared type.
    """
    wanted = frozenset(wanted)
    of_problem = frozenset(name.removeprefix("problem.") for name in wanted if name.startswith("problem."))
    frame = rows.frame(span, wanted)
    if of_problem:
        problems = rows.problems(span, of_problem).select(
            "problem_id", *(pl.col(name).alias(f"problem.{name}") for name in sorted(of_problem))
        )
        frame = frame.join(problems, on="problem_id", how="left", maintain_order="left")
    # A shard without rows has no columns, and expressions fail on nulls of another type.
    known = {column.name: column for column in (VERDICT, *declared)}
    types = pl.Schema(schema_of(Table.JUDGED, known.values()))
    absent = sorted(wanted - set(frame.columns))
    return frame.with_columns(pl.lit(None, types.get(name, pl.Float64())).alias(name) for name in absent)


def known_columns(job: ShardJob) -> list[Column]:
    """Return the columns that rows can have at a stage: its own, then those of the stages above it."""
    above = {name: column for one in job.rows.inputs for name, column in one.columns.items()}
    return [*job.op.columns(job.stage, job.pipeline), *above.values()]


def add_result(tables: Tables, op: Stage[Any], result: Result, batch: Batch, declared: Sequence[Column]) -> None:
    """Add the result of one batch to the tables of a shard."""
    if result.made:
        tables.add_made(TABLE_OF[op.makes], made_table(TABLE_OF[op.makes], result.made))
    judgements = [*result.judged, *map(judgement_of, result.made)]
    owners = {row.id: problem_id_of(row) for row in batch.rows}
    owners |= {made.row.id: problem_id_of(made.row) for made in result.made}
    tables.add_judged(judged_table(judgements, owners, declared), declared)
    tables.count(result.numbers, result.notes)


def _judged(decided: Decided, declared: Sequence[Column]) -> pa.Table:
    columns = [column_for(name, declared) for name in decided.frame.columns if name not in PLAIN_COLUMNS]
    frame = decided.frame.with_columns(failed=pl.lit(value=False), owed=pl.lit(value=False))
    schema = schema_of(Table.JUDGED, columns)
    missing = [pl.lit(None, pl.String).alias(name) for name in schema.names if name not in frame.columns]
    return frame.with_columns(missing).select(schema.names).to_arrow().cast(schema)


def _check(job: ShardJob, batch: Batch, result: Result) -> None:
    """Raise AssertionError unless all rows of the batch are accounted for."""
    given = sorted(row.id for row in batch.rows)
    judged = sorted(judgement.id for judgement in result.judged)
    where = f"{job.stage.id}, shard {job.index}"
    if job.op.judges and given != judged:
        raise AssertionError(f"{where}: {len(given)} rows in, but {len(judged)} judged: rows were lost")
    expected = job.op.rows_made(job.stage, len(given))
    if expected is not None and expected != len(result.made):
        raise AssertionError(f"{where}: {len(result.made)} rows made from {len(given)}, expected {expected}")
    replaced = sum(one.decision.reason == REPLACED for one in result.judged)
    if job.op.judges and replaced != len(result.made):
        raise AssertionError(f"{where}: {replaced} rows were replaced, but {len(result.made)} were made")
