"""The inline executor, which runs everything in this process, for debugging, tests and small runs."""

from __future__ import annotations

import asyncio
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from tracefactory.core.pipeline import StageSpec
from tracefactory.core.spans import Span
from tracefactory.engine.executors.base import MODEL_SHARDS, Layouts, host_of
from tracefactory.engine.worker import Worker, WorkerSetup
from tracefactory.serving.vllm.placement import LocalPlacement
from tracefactory.store.stages import ShardRecord


class InlineExecutor:
    """Runs all shards on one worker, with the same limit on concurrent shards per host as on Ray."""

    def __init__(self, setup: WorkerSetup) -> None:
        self.worker = Worker(
            setup, verifier_processes=setup.pipeline.run.workers or os.cpu_count() or 1, placement=LocalPlacement()
        )
        self._ranges = asyncio.Semaphore(os.cpu_count() or 1)  # each needs memory for a row group of every view
        self._turns: defaultdict[str, asyncio.Semaphore] = defaultdict(lambda: asyncio.Semaphore(MODEL_SHARDS))

    async def run_shard(self, stage: StageSpec[Any], index: int, layouts: Layouts) -> ShardRecord | None:
        async with self._turns[host_of(stage, self.worker.pipeline)]:
            return await self.worker.run_shard(stage.id, index, layouts)

    async def run_whole(
        self, stage: StageSpec[Any], layouts: Layouts, inputs: Mapping[str, str], reports: Sequence[Any] = ()
    ) -> list[ShardRecord]:
        return await self.worker.run_whole(stage.id, layouts, inputs, reports)

    async def write_range(self, stage: StageSpec[Any], layouts: Layouts, number: int, span: Span) -> Any:
        async with self._ranges:
            return await self.worker.write_range(stage.id, layouts, number, span)

    async def progress(self) -> Mapping[str, Mapping[str, float]]:
        return self.worker.progress()

    async def notices(self) -> Mapping[str, str]:
        return self.worker.notices()

    async def drain(self) -> None:
        self.worker.drain()

    async def close(self) -> None:
        await self.worker.close()
