"""The inline executor, which runs all shards in this process; ranges of a large release have processes of their own.

Making the rows of a release is Python, which one process runs on one CPU.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any

from tracefactory.core.pipeline import StageSpec
from tracefactory.core.processes import signal_at_parents_death
from tracefactory.core.spans import Span
from tracefactory.engine.executors.base import Layouts, host_of, shards_at_once
from tracefactory.engine.worker import Worker, WorkerSetup
from tracefactory.serving.status import ModelStatus
from tracefactory.serving.vllm.placement import LocalPlacement, visible_gpus
from tracefactory.store.stages import ShardRecord


class InlineExecutor:
    """Runs all shards on one worker, with the same limit on concurrent shards per host as on Ray."""

    def __init__(self, setup: WorkerSetup) -> None:
        self.worker = Worker(
            setup, verifier_processes=setup.pipeline.run.workers or os.cpu_count() or 1, placement=LocalPlacement()
        )
        self._writers: ProcessPoolExecutor | None = None
        self._turns: dict[str, asyncio.Semaphore] = {}

    async def run_shard(self, stage: StageSpec[Any], index: int, layouts: Layouts) -> ShardRecord | None:
        host = host_of(stage, self.worker.pipeline)
        if host not in self._turns:
            self._turns[host] = asyncio.Semaphore(shards_at_once(host, self.worker.pipeline))
        async with self._turns[host]:
            return await self.worker.run_shard(stage.id, index, layouts)

    async def run_whole(
        self, stage: StageSpec[Any], layouts: Layouts, inputs: Mapping[str, str], reports: Sequence[Any] = ()
    ) -> list[ShardRecord]:
        return await self.worker.run_whole(stage.id, layouts, inputs, reports)

    async def write_range(self, stage: StageSpec[Any], layouts: Layouts, number: int, span: Span) -> Any:
        if span == Span.all():  # starting a process takes longer than writing a small release
            return await self.worker.write_range(stage.id, layouts, number, span)
        if self._writers is None:
            context = multiprocessing.get_context("spawn")
            self._writers = ProcessPoolExecutor(os.cpu_count(), mp_context=context, initializer=_prepare)
        arguments = (self.worker.setup, stage.id, dict(layouts), number, span)
        return await asyncio.get_running_loop().run_in_executor(self._writers, _write_range, *arguments)

    async def progress(self) -> Mapping[str, Mapping[str, float]]:
        return self.worker.progress()

    async def events(self) -> Sequence[Mapping[str, Any]]:
        return self.worker.events()

    async def models(self) -> Mapping[str, ModelStatus]:
        return self.worker.models()

    async def gpus(self) -> int:
        return len(visible_gpus(os.environ))

    async def release(self, model: str) -> None:
        await self.worker.release(model)

    async def drain(self) -> None:
        self.worker.drain()

    async def close(self) -> None:
        if self._writers is not None:
            self._writers.shutdown(wait=False, cancel_futures=True)
        await self.worker.close()


def _prepare() -> None:
    """In a writer: end with the parent, and leave Ctrl-C to it."""
    signal_at_parents_death()
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _write_range(setup: WorkerSetup, stage_id: str, layouts: Layouts, number: int, span: Span) -> Any:
    """In a writer: write one range of a release."""
    worker = Worker(setup, verifier_processes=1, placement=LocalPlacement())
    return asyncio.run(worker.write_range(stage_id, layouts, number, span))
