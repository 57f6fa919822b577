"""Give GPUs to the stages of a run in turns, where they are too few for all models at once.

A stage has its turn while it works: it then holds the GPUs of its models, together with other stages that use them.
When no stage that has its turn uses a model, its servers and workers are ended and its GPUs are free for the next
stage; one with `keep: true` stays loaded until another stage needs its GPUs.

Stages ask for their turn when all stages above them have had theirs, and models of finished stages are ended, so
stages cannot wait for each other in a circle.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import Any

from tracefactory.core.environment import Environment
from tracefactory.core.errors import Interrupted
from tracefactory.core.gpus import gpus_of
from tracefactory.core.pipeline import Pipeline, StageSpec

NOTE_EVERY_S = 30.0
"""Seconds after which a waiting stage says again what it waits for."""


class GpuTurns:
    """The turns of one run.

    Args:
        pipeline: the pipeline.
        environment: tells which models are served already, and need no GPUs of this run.
        capacity: returns the number of GPUs of the machine or cluster; called before the first turn.
        release: ends the servers and workers of a model.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        environment: Environment,
        capacity: Callable[[], Awaitable[int]],
        release: Callable[[str], Awaitable[None]],
    ) -> None:
        self.pipeline, self.environment = pipeline, environment
        self._count, self._release = capacity, release
        self._capacity: int | None = None
        self._loaded: dict[str, int] = {}  # GPUs by model
        self._users: dict[str, set[str]] = {}  # stages that have their turn, by model
        self._lock = asyncio.Lock()
        self._changed = asyncio.Event()
        self._stopped = False

    @asynccontextmanager
    async def turn(self, stage: StageSpec[Any], notify: Callable[[str], None]) -> AsyncIterator[None]:
        """Wait for the turn of a stage, and end it; stages without GPUs do not wait.

        Args:
            stage: the stage.
            notify: called with what the stage waits for, since when, and which stages hold it.

        Raises:
            Interrupted: when the run is stopped before it is the stage's turn.
        """
        models = gpus_of(stage, self.pipeline)
        if not models:
            yield
            return
        specs = self.pipeline.models
        needed = {name: count for name, count in models.items() if not specs[name].is_served(self.environment)}
        if needed:
            await self._wait(stage.id, needed, notify)
        for name in models:
            self._users.setdefault(name, set()).add(stage.id)
        try:
            yield
        finally:
            await self._end(stage.id, models)

    def stop(self) -> None:
        """Interrupt the stages that wait."""
        self._stopped = True
        self._changed.set()

    async def _wait(self, stage_id: str, needed: Mapping[str, int], notify: Callable[[str], None]) -> None:
        since = time.time()
        if self._capacity is None:
            async with self._lock:
                declared = self.pipeline.run.gpus
                self._capacity = self._capacity or (await self._count() if declared is None else declared)
        try:
            while not self._stopped:
                self._changed.clear()
                if await self._begin(stage_id, needed):
                    return
                notify(self._reason(needed, since))
                try:
                    await asyncio.wait_for(self._changed.wait(), NOTE_EVERY_S)
                except TimeoutError:
                    continue
            raise Interrupted
        finally:
            self._changed.set()

    async def _begin(self, stage_id: str, needed: Mapping[str, int]) -> bool:
        """Begin the turn of a stage if there are GPUs for it, ending models that no stage uses."""
        async with self._lock:
            used = {name: count for name, count in self._loaded.items() if self._users.get(name)}
            # A stage that alone needs more has its turn alone; a cluster may grow, and placing says what is missing.
            if used and self._exceed(used | dict(needed)):
                return False
            for name in [name for name in self._loaded if name not in used and name not in needed]:
                if self._exceed(self._loaded | dict(needed)):
                    await self._unload(name)
            self._loaded |= needed
            for name in needed:
                self._users.setdefault(name, set()).add(stage_id)
            return True

    def _exceed(self, gpus: Mapping[str, int]) -> bool:
        return sum(gpus.values()) > (self._capacity or 0)

    async def _end(self, stage_id: str, models: Iterable[str]) -> None:
        async with self._lock:
            for name in models:
                self._users[name].discard(stage_id)
                ends = not self._users[name] and not self.pipeline.models[name].keeps_gpus
                if ends and name in self._loaded and not self._stopped:  # the end of a run ends everything
                    await self._unload(name)
        self._changed.set()

    async def _unload(self, name: str) -> None:
        await self._release(name)
        del self._loaded[name]

    def _reason(self, needed: Mapping[str, int], since: float) -> str:
        wanted = ", ".join(f"{count} of {name}" for name, count in needed.items() if name not in self._loaded)
        users = {name: ", ".join(sorted(stages)) for name, stages in self._users.items() if stages}
        holders = ", ".join(f"{name} {self._loaded[name]} for {stages}" for name, stages in users.items())
        clock = time.strftime("%H:%M:%S", time.localtime(since))
        return f"waits since {clock} for GPUs ({wanted}); of {self._capacity}, {holders}"
