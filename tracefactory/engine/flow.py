"""How stages flow: all at the same time and shard by shard.

A shard of one stage starts when the same shard of its inputs is there. Only stages that need all rows (source, mix,
publish) wait for whole stages.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tracefactory.config import Pipeline, StageConfig
from tracefactory.core.errors import RunError
from tracefactory.core.op import WholeOp
from tracefactory.engine.executors import Executor
from tracefactory.engine.plan import Identity, is_current
from tracefactory.engine.runs import RunFolder
from tracefactory.engine.worker import Interrupted
from tracefactory.store.leases import Lease
from tracefactory.store.stages import ShardRecord, StageFolder, StageRecord, Tally, combined_digest

PAID = ("requests", "prompt_tokens", "completion_tokens", "cost")


@dataclass
class StageRun:
    """One stage on its way: what others wait for, and what the display shows."""

    stage: StageConfig
    folder: StageFolder
    shards: asyncio.Future[int] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    done: list[asyncio.Future[None]] = field(default_factory=list)
    record: asyncio.Future[StageRecord] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    tally: Tally = field(default_factory=Tally)
    paid: dict[str, float] = field(default_factory=dict)  # by this run alone
    finished: int = 0
    cached: bool = False
    started: float | None = None
    waiting: str = ""
    notice: str = ""  # of the models it asks; set by the display

    def __post_init__(self) -> None:
        limit = self.stage.run.concurrency
        self.turn: AbstractAsyncContextManager[object] = asyncio.Semaphore(limit) if limit else nullcontext()

    def expect(self, count: int) -> None:
        """Announce how many shards there will be."""
        self.done = [asyncio.get_running_loop().create_future() for _ in range(count)]
        self.shards.set_result(count)

    async def shard_ready(self, index: int, count: int) -> None:
        """Wait until what shard `index` of `count` reads from this stage is there; both layouts are powers of two."""
        fewer = min(count, await self.shards)
        for shard in range(index % fewer, len(self.done), fewer):
            await self.done[shard]

    def add(self, index: int, record: ShardRecord, run_id: str) -> None:
        self.tally += record.tally
        if record.run == run_id:
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
        """Release whoever waits for this stage: there is nothing more to come."""
        futures: list[asyncio.Future[Any]] = [self.shards, *self.done, self.record]
        for waiting in futures:
            if not waiting.done():
                waiting.set_exception(Interrupted())
                waiting.exception()  # nobody may be waiting for this one


class Flow:
    """Runs the stages of one pipeline."""

    def __init__(
        self, pipeline: Pipeline, root: Path, keys: Mapping[str, Identity], executor: Executor, run: RunFolder
    ) -> None:
        self.pipeline, self.root, self.identities, self.executor, self.run = pipeline, root, keys, executor, run
        self.stopping = False
        self.stages: dict[str, StageRun] = {}
        for stage in pipeline.stages:
            folder = StageFolder(root, stage.id, keys[stage.id].key, stage.op.gives)
            self.stages[stage.id] = StageRun(stage, folder)

    async def __call__(self) -> None:
        """Run every stage.

        Raises:
            Interrupted: when `stop` was called before everything was done.
            RunError, UserError, ...: the first failure; the other stages have been drained by then.
        """
        outcomes = await asyncio.gather(*map(self._guarded, self.stages.values()), return_exceptions=True)
        failures = [one for one in outcomes if isinstance(one, BaseException)]
        for failure in sorted(failures, key=lambda one: isinstance(one, Interrupted)):
            raise failure

    async def stop(self) -> None:
        """Start no further shard and send no further request; keep what is in flight."""
        self.stopping = True
        await self.executor.drain()

    async def _guarded(self, run: StageRun) -> None:
        try:
            await self._stage(run)
        except BaseException as error:
            run.fail()
            if not isinstance(error, Interrupted):
                self.run.log("stage_failed", stage=run.stage.id, error=repr(error))
                await self.stop()
            raise

    async def _stage(self, run: StageRun) -> None:
        if run.folder.record() is not None and await self._reuse(run):
            return
        whole = isinstance(run.stage.op, WholeOp)
        counts = [await self.stages[source].shards for source in run.stage.inputs]
        if whole:
            await self._inputs(run)
        async with Lease(self.root, run.folder.path, self.run.id, lambda text: self._wait(run, text)):
            run.waiting = ""
            if run.folder.record() is not None and await self._reuse(run):
                return
            run.started = time.time()
            run.folder.write_identity(self.identities[run.stage.id].content)
            records = await (self._whole(run, counts) if whole else self._shards(run, max(counts)))
            run.finish(self._record(run, records, await self._inputs(run)))
            run.paid["seconds"] = time.time() - run.started

    async def _reuse(self, run: StageRun) -> bool:
        """Use a finished stage as it is, if its inputs are still those it was made from."""
        inputs = await self._inputs(run)
        if not is_current(run.folder, inputs, run.stage, self.pipeline):
            return False
        record = run.folder.record()
        assert record is not None
        run.finish(record, cached=True)
        return True

    async def _inputs(self, run: StageRun) -> dict[str, StageRecord]:
        return {source: await self.stages[source].record for source in run.stage.inputs}

    async def _whole(self, run: StageRun, counts: list[int]) -> list[ShardRecord]:
        if self.stopping:
            raise Interrupted
        inputs = {source: record.digest for source, record in (await self._inputs(run)).items()}
        records = await self.executor.run_whole(run.stage, max(counts) if counts else None, inputs)
        run.expect(len(records))
        for index, record in enumerate(records):
            run.add(index, record, self.run.id)
        return records

    async def _shards(self, run: StageRun, count: int) -> list[ShardRecord]:
        run.folder.reopen(count)
        run.expect(count)
        outcomes = await asyncio.gather(*(self._shard(run, i, count) for i in range(count)), return_exceptions=True)
        for outcome in sorted(outcomes, key=lambda one: isinstance(one, Interrupted)):
            if isinstance(outcome, BaseException):
                raise outcome
        return [outcome for outcome in outcomes if isinstance(outcome, ShardRecord)]

    async def _shard(self, run: StageRun, index: int, count: int) -> ShardRecord:
        for source in run.stage.inputs:
            await self.stages[source].shard_ready(index, count)
        async with run.turn:
            if self.stopping:
                raise Interrupted
            try:
                record = await self.executor.run_shard(run.stage, index, count)
            except BaseException as error:
                if not self.stopping and not isinstance(error, Interrupted):
                    await self.stop()
                raise
        if record is None:
            raise Interrupted
        run.add(index, record, self.run.id)
        return record

    def _record(self, run: StageRun, records: list[ShardRecord], inputs: Mapping[str, StageRecord]) -> StageRecord:
        """Write the stage's record: with it, and only with it, the stage is done."""
        record = StageRecord(
            stage=run.stage.id,
            key=run.folder.key,
            shards=len(records),
            inputs={source: one.digest for source, one in inputs.items()},
            digest=combined_digest(one.digest for one in records),
            tally=sum((one.tally for one in records), Tally()),
            finished=time.time(),
        )
        expected = run.stage.op.rows_expected(run.stage, sum(one.tally.kept for one in inputs.values()))
        if expected is not None and expected != record.tally.rows_in:
            raise RunError(
                f"{run.stage.id}: {record.tally.rows_in} rows in, but its inputs gave {expected}: rows were lost"
            )
        run.folder.write_record(record)
        self.run.log("stage_done", stage=run.stage.id, digest=record.digest, tally=record.tally.model_dump(mode="json"))
        return record

    def _wait(self, run: StageRun, text: str) -> None:
        run.waiting = text
        self.run.log("waiting", stage=run.stage.id, text=text)
