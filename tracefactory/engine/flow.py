"""Schedule the stages of a run: all stages run concurrently, shard by shard.

A shard of a stage starts when the shards of its inputs with the same problems are done. Stages that need all rows
(sources, mixes, releases) wait for complete stages. A stage that decides from columns processes all shards at once if
its inputs are already complete.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from tracefactory.core.environment import Environment
from tracefactory.core.errors import Interrupted, RunError, RunStopped
from tracefactory.core.pipeline import Pipeline, StageSpec
from tracefactory.core.spans import Span
from tracefactory.core.stage import Stage, Work, kinds_of, stage_of
from tracefactory.engine.caps import BudgetWatch
from tracefactory.engine.emptied import nothing_left, only_from
from tracefactory.engine.executors.base import Executor
from tracefactory.engine.failing import check_shards
from tracefactory.engine.gpus import GpuTurns
from tracefactory.engine.identity import Identity, rows_of
from tracefactory.engine.plan import is_current
from tracefactory.engine.runs import PAID, RunFolder
from tracefactory.engine.shards import combined_inputs
from tracefactory.engine.sharing import Sharing
from tracefactory.serving.failures import failures_in
from tracefactory.store.leases import Lease
from tracefactory.store.stages import (
    OWED,
    ShardRecord,
    StageFolder,
    StageRecord,
    Tally,
    input_token,
    stage_digest,
    to_retry,
)


@dataclass
class StageRun:
    """The state of one stage in a run: futures for the other stages, and values for the display."""

    stage: StageSpec[Any]
    folder: StageFolder
    shards: asyncio.Future[int] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    done: list[asyncio.Future[None]] = field(default_factory=list)
    record: asyncio.Future[StageRecord] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    tally: Tally = field(default_factory=Tally)
    paid: dict[str, float] = field(default_factory=dict)  # by this run
    worked: Tally = field(default_factory=Tally)  # of the shards that this run has finished
    made: list[int] = field(default_factory=list)  # these shards
    finished: int = 0
    cached: bool = False
    failed: bool = False
    started: float | None = None
    paying: tuple[float, float] | None = None  # when requests of it were first seen to be paid for, and how many
    waiting: str = ""
    notice: str = ""  # about its models; set by the display

    def __post_init__(self) -> None:
        self.op: Stage[Any] = stage_of(self.stage)
        limit = self.stage.run.concurrency
        self.slots: AbstractAsyncContextManager[object] = asyncio.Semaphore(limit) if limit else nullcontext()

    def expect(self, count: int) -> None:
        """Set the number of shards."""
        self.done = [asyncio.get_running_loop().create_future() for _ in range(count)]
        self.shards.set_result(count)

    async def shard_ready(self, span: Span) -> None:
        """Wait until the shards with the problems of a span are done."""
        for shard in span.parts(await self.shards):
            await self.done[shard]

    def add(self, index: int, record: ShardRecord, run_id: str) -> None:
        self.tally += record.tally
        if record.run == run_id:
            self.worked += record.tally
            self.made.append(index)
            for name in PAID:
                self.paid[name] = self.paid.get(name, 0) + record.tally.numbers.get(f"paid_{name}", 0)
        self.finished += 1
        self.done[index].set_result(None)

    def finish(self, record: StageRecord, *, cached: bool = False) -> None:
        self.cached, self.tally, self.finished = cached, record.tally, record.shards
        if not self.shards.done():
            self.expect(record.shards)
        for one in self.done:
            if not one.done():
                one.set_result(None)
        self.record.set_result(record)

    def fail(self) -> None:
        """Interrupt everything that waits for this stage."""
        futures: list[asyncio.Future[Any]] = [self.shards, *self.done, self.record]
        for waiting in futures:
            if not waiting.done():
                waiting.set_exception(Interrupted())
                waiting.exception()  # mark as retrieved: there may be no waiter


class Flow:
    """Runs the stages of one pipeline."""

    def __init__(
        self,
        pipeline: Pipeline,
        root: Path,
        keys: Mapping[str, Identity],
        executor: Executor,
        run: RunFolder,
        sharing: Sharing,
        retry: str = OWED,
    ) -> None:
        self.sharing = sharing
        self.pipeline, self.root, self.identities, self.executor, self.run = pipeline, root, keys, executor, run
        self.retry = retry
        self.budget = BudgetWatch(pipeline, root, run.started)
        environment = Environment(root=pipeline.project.root, servers=root / "servers")
        self.gpus = GpuTurns(pipeline, environment, executor.gpus, self._release)
        self.stopping = False
        self.stages: dict[str, StageRun] = {}
        for stage in pipeline.stages:
            self.stages[stage.id] = StageRun(stage, StageFolder(root, stage.id, keys[stage.id].key))

    async def __call__(self) -> None:
        """Run every stage.

        Raises:
            Interrupted: when `stop` was called before all stages were done.
            RunError, UserError, ...: the first failure; the other stages have been drained before.
        """
        outcomes = await asyncio.gather(*map(self._guarded, self.stages.values()), return_exceptions=True)
        failures = [one for one in outcomes if isinstance(one, BaseException)]
        for failure in sorted(failures, key=lambda one: isinstance(one, Interrupted)):
            raise failure

    async def stop(self) -> None:
        """Start no further shards and send no further requests; requests in flight are finished and stored."""
        self.stopping = True
        self.gpus.stop()
        self.sharing.stop()
        await self.executor.drain()

    async def _release(self, model: str) -> None:
        self.run.log("model_released", model=model)
        await self.executor.release(model)

    def lost(self, why: str) -> None:
        """Stop, because a lease in the shared state was lost; the stage that held it fails with `why`."""
        self.run.log("lease_lost", text=why)
        self._stopped = asyncio.create_task(self.stop())

    async def _guarded(self, run: StageRun) -> None:
        try:
            await self._run_stage(run)
        except BaseException as error:
            run.fail()
            if not isinstance(error, Interrupted):
                run.failed = True
                self.run.log("stage_failed", stage=run.stage.id, error=repr(error))
                await self.stop()
            raise

    async def _run_stage(self, run: StageRun) -> None:
        if run.folder.record() is not None and await self._reuse(run):
            return
        layouts = await self._layouts(run)
        work = run.op.work(run.stage, self.pipeline)
        inputs_are_done = all(self.stages[source].record.done() for source in run.stage.inputs)
        whole = inputs_are_done if work is Work.COLUMNS else work is not Work.ROWS
        if whole:
            await self._inputs(run)
        wait, shards = partial(self._wait, run), None if whole else max(layouts.values())
        async with (
            Lease(self.root, run.folder.path, self.run.id, wait),
            self.sharing.stage(run.folder.path, self.run.id, wait, self.lost, shards=shards),
        ):
            self._wait(run, "")
            if run.folder.record() is not None and await self._reuse(run):
                return
            async with self.gpus.turn(run.stage, wait):
                self._wait(run, "")
                run.started = time.time()
                run.folder.write_identity(self.identities[run.stage.id].stored())
                self.run.log("stage_begun", stage=run.stage.id)
                records = await (self._run_whole(run) if shards is None else self._run_shards(run, shards))
            record = self._write_record(run, records, await self._inputs(run))
            self._check_left(run, record)
            run.finish(record)
            run.paid["seconds"] = time.time() - run.started

    async def _reuse(self, run: StageRun) -> bool:
        """Reuse a finished stage if its inputs have not changed."""
        inputs = await self._inputs(run)
        if not is_current(run.folder, inputs, run.op.is_intact(run.stage, self.pipeline), self.retry):
            return False
        record = run.folder.record()
        assert record is not None
        run.tally = record.tally
        self._check_left(run, record)
        run.finish(record, cached=True)
        self.run.log("stage_cached", stage=run.stage.id, digest=record.digest)
        return True

    def _check_left(self, run: StageRun, record: StageRecord) -> None:
        """Raise RunError when a stage keeps no row, and a stage below has no rows but from it."""
        if record.tally.kept == 0 and (below := only_from(run.stage, self.pipeline)):
            inputs = {source: self.stages[source].tally for source in run.stage.inputs}
            raise RunError(nothing_left(run.stage, self.pipeline, run.folder, record, inputs, below))

    async def _inputs(self, run: StageRun) -> dict[str, StageRecord]:
        return {source: await self.stages[source].record for source in run.stage.inputs}

    async def _run_whole(self, run: StageRun) -> list[ShardRecord]:
        if self.stopping:
            raise Interrupted
        inputs = {source: record.digest for source, record in (await self._inputs(run)).items()}
        layouts = await self._layouts(run)
        reports: list[Any] = []
        if run.op.work(run.stage, self.pipeline) is Work.RELEASE:
            self._check_owed(run)
            reports = await self._write_ranges(run, layouts)
        records = await self.executor.run_whole(run.stage, layouts, inputs, reports)
        run.expect(len(records))
        for index, record in enumerate(records):
            run.add(index, record, self.run.id)
        return records

    def _check_owed(self, run: StageRun) -> None:
        """Raise RunStopped when more rows are owed than may be missing in a release."""
        allowed = run.op.missing_allowed(run.stage)
        lines = []
        for above in self.pipeline.above(run.stage):
            tally = self.stages[above.id].tally
            if tally.owed > allowed * tally.rows_in:
                why = ", ".join(f"{kind} {count:,}" for kind, count in failures_in(tally.reasons).items())
                share = 100 * tally.owed / tally.rows_in
                lines.append(f"{above.id}: {tally.owed:,} of {tally.rows_in:,} rows ({share:.2g}%) failed: {why}")
        if lines:
            raise RunStopped(
                f"{run.stage.id}: nothing is published, because rows are still owed. {'; '.join(lines)}. The same "
                "command asks for them again; `allow_missing: 1%` of the publish stage accepts a share without them"
            )

    async def _write_ranges(self, run: StageRun, layouts: Mapping[str, int]) -> list[Any]:
        """Write the ranges of a release concurrently and return their reports."""
        keys = {stage: identity.key for stage, identity in self.identities.items()}
        rows = combined_inputs(rows_of(run.stage.id, self.pipeline, self.root, keys, {**layouts, run.stage.id: 1}))
        spans = await asyncio.to_thread(run.op.ranges, run.stage, rows)
        jobs = (self.executor.write_range(run.stage, layouts, number, span) for number, span in enumerate(spans))
        return list(await asyncio.gather(*jobs))

    async def _layouts(self, run: StageRun) -> dict[str, int]:
        """Return the numbers of shards of all stages above."""
        return {one.id: await self.stages[one.id].shards for one in self.pipeline.above(run.stage)}

    async def _run_shards(self, run: StageRun, count: int) -> list[ShardRecord]:
        run.folder.reopen(count)
        run.expect(count)
        layouts = {**await self._layouts(run), run.stage.id: count}
        jobs = (self._run_shard(run, index, count, layouts) for index in range(count))
        outcomes = await asyncio.gather(*jobs, return_exceptions=True)
        for outcome in sorted(outcomes, key=lambda one: isinstance(one, Interrupted)):
            if isinstance(outcome, BaseException):
                raise outcome
        return [outcome for outcome in outcomes if isinstance(outcome, ShardRecord)]

    async def _run_shard(self, run: StageRun, index: int, count: int, layouts: Mapping[str, int]) -> ShardRecord:
        span = Span.of(index, count)
        for above in self.pipeline.above(run.stage):
            await self.stages[above.id].shard_ready(span)

        def is_usable(record: ShardRecord, fresh: bool) -> bool:
            inputs = {one: input_token(self.stages[one].folder, layouts[one], span) for one in run.stage.inputs}
            return record.inputs == inputs and (fresh or not to_retry(record.tally, self.retry))

        async with self.sharing.shard(run.stage, run.folder.path, index, is_usable, run.slots) as here:
            if self.stopping:
                raise Interrupted
            record = await self._work_on(run, index, layouts) if here else run.folder.shard_record(index, count)
            if record is None and not here:
                raise RunError(
                    f"{run.folder.path}: shard {index} of {count} was removed while it was used: run it again"
                )
            if record is None:
                raise Interrupted
        run.add(index, record, self.run.id)
        counts = {name: getattr(record.tally, name) for name in ("rows_in", "kept", "dropped", "errors", "owed")}
        reused = record.run != self.run.id
        self.run.log("shard_done", stage=run.stage.id, shard=index, of=count, reused=reused, **counts)
        if self.retry == OWED:  # otherwise owed rows of earlier runs are left
            check_shards(run.stage, self.pipeline, run.folder, run.made, count, run.worked)
        return record

    async def _work_on(self, run: StageRun, index: int, layouts: Mapping[str, int]) -> ShardRecord | None:
        self.run.log("shard_begun", stage=run.stage.id, shard=index, of=layouts[run.stage.id])
        try:
            return await self.executor.run_shard(run.stage, index, layouts)
        except BaseException as error:
            if not self.stopping and not isinstance(error, Interrupted):
                await self.stop()
            raise

    def _write_record(
        self, run: StageRun, records: list[ShardRecord], inputs: Mapping[str, StageRecord]
    ) -> StageRecord:
        """Check the counts and write the stage's record, which marks the stage as done."""
        digests = {source: one.digest for source, one in inputs.items()}
        tally = sum((one.tally for one in records), Tally())
        self._check_counts(run, tally, inputs)
        record = StageRecord(
            stage=run.stage.id,
            key=run.folder.key,
            gives=kinds_of(self.pipeline)[run.stage.id],
            makes=run.op.makes,
            judges=run.op.judges,
            shards=len(records),
            inputs=digests,
            digest=stage_digest((one.digest for one in records), digests),
            tally=tally,
            columns=tuple({column.name: column for one in records for column in one.columns}.values()),
            finished=time.time(),
        )
        run.folder.write_record(record)
        self.run.log("stage_done", stage=run.stage.id, digest=record.digest, tally=record.tally.model_dump(mode="json"))
        return record

    def _check_counts(self, run: StageRun, tally: Tally, inputs: Mapping[str, StageRecord]) -> None:
        """Raise RunError unless all rows of the inputs are accounted for."""
        given = sum(one.tally.kept for one in inputs.values())
        expected = given if run.op.judges else run.op.rows_made(run.stage, given)
        if not inputs or expected is None or expected == tally.rows_in:
            return
        if len(inputs) > 1 and tally.rows_in < expected and self._share_rows(run):
            return  # a row from two inputs counts once
        raise RunError(f"{run.stage.id}: {tally.rows_in} rows in, but its inputs have {expected}: rows were lost")

    def _share_rows(self, run: StageRun) -> bool:
        """Return whether two inputs can have the same rows, from a common stage that makes rows or from two sources.

        The id of a row from a source is made from its content, so two sources can read the same row.
        """
        kind = kinds_of(self.pipeline)[run.stage.inputs[0]]
        stages = [self.stages[source].stage for source in run.stage.inputs]
        paths = [[stage, *self.pipeline.above(stage)] for stage in stages]
        makers = [
            {stage.id if stage.inputs else "" for stage in path if stage_of(stage).makes is kind} for path in paths
        ]
        return any(one & other for index, one in enumerate(makers) for other in makers[:index])

    def _wait(self, run: StageRun, text: str) -> None:
        if text != run.waiting:
            run.waiting = text
            self.run.log("waiting", stage=run.stage.id, text=text or "not any more")
