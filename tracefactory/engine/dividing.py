"""Dividing the shards of a stage between the runs that work on it at the same time with one shared state.

A run takes as many shards as it works on at once. One that another run holds is left, and looked at again every few
seconds: it is fetched when it is finished, and taken when its run has ended. What is finished is put after its
completions, so that whoever fetches it has them too.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from typing import Any

from tracefactory.core.errors import Interrupted
from tracefactory.core.pipeline import Pipeline, StageSpec
from tracefactory.engine.executors import uses_ray
from tracefactory.engine.executors.base import MODEL_HOST, host_of, shards_at_once
from tracefactory.store.shared import leases
from tracefactory.store.shared.objects import Unreachable
from tracefactory.store.shared.shards import Holder, ShardLeases
from tracefactory.store.shared.stages import SharedStage
from tracefactory.store.stages import ShardRecord

Do = Callable[..., Awaitable[Any]]
"""Does something in a thread, and returns its result."""
IsUsable = Callable[[ShardRecord, bool], bool]
"""Whether a run can use a shard: its record, and whether it was finished since the run began to work on the stage."""


EVERYTHING = 10_000
"""Shards that a cluster takes at once, where it is not known how many processors it has."""


def taken_at_once(stage: StageSpec[Any], pipeline: Pipeline, count: int) -> int:
    """Return how many shards of a stage a run holds at the same time: as many as it works on, at most half of them.

    All are held of models with batches, which their shards share, and by a cluster of unknown size.

    Args:
        stage: the stage.
        pipeline: its pipeline.
        count: the number of its shards.
    """
    host = host_of(stage, pipeline)
    at_once = shards_at_once(host, pipeline)
    if host == "cpu":
        at_once = pipeline.run.workers or (EVERYTHING if on_cluster(pipeline) else max(at_once, os.cpu_count() or 1))
    else:
        at_once *= pipeline.models[host.removeprefix(MODEL_HOST)].client_processes
    return at_once if at_once >= EVERYTHING else min(at_once, max(1, count // 2))


def on_cluster(pipeline: Pipeline) -> bool:
    """Return whether a pipeline runs on several machines."""
    if not uses_ray(pipeline):
        return False
    from tracefactory.engine.executors.ray_cluster import is_cluster

    return is_cluster(pipeline.run)


class Division:
    """The shards of one stage that a run divides with others; an asynchronous context manager while it works on it.

    Args:
        stage: the stage's folder, which was pulled.
        held: the leases of the run on its shards.
        ask: does something with `stage`, which one thread uses.
        lease: does something with leases.
        catch_up: fetches what was paid for by a run whose shard is taken over.
        notify: is told for whom the run waits while it has nothing else to do in the stage.
        log: is told what failed and is tried again.
    """

    def __init__(
        self,
        stage: SharedStage,
        held: ShardLeases,
        ask: Do,
        lease: Do,
        catch_up: Callable[[], Awaitable[None]],
        notify: Callable[[str], None],
        log: Callable[[str], None],
    ) -> None:
        self.stage, self.held = stage, held
        self._ask, self._lease, self._catch_up, self._notify, self._log = ask, lease, catch_up, notify, log
        self._before = {index: stage.version(index, held.count) for index in range(held.count)}
        self._finished: dict[int, str | None] = {}  # with the version in the shared state that each replaces
        self._new: set[int] = set()  # of these, what is not put yet
        self._useless: dict[int, str] = {}  # versions in the shared state that this run cannot use
        self._waiting: dict[int, Holder] = {}
        self.is_put = False
        """Whether everything was put in the end; otherwise `push` is tried again."""
        self._working = 0
        self._told = ""
        self._stopped = False
        self._look = _Coalesced(partial(ask, stage.refresh))
        self._catching_up = _Coalesced(catch_up)
        self._woken = asyncio.Event()
        self._watching: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Division:
        self._watching = asyncio.create_task(self._watch())
        return self

    async def __aexit__(self, *failure: object) -> None:
        """Put what is finished, and give it back; the rest is held until the run ends, when all it paid for is put."""
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)
        try:
            await self._ask(self.push)
            self.is_put = True
            done = [index for index in self.held.held if index in self._finished or self._is_new(index)]
            await asyncio.gather(*(self._lease(self.held.end, index) for index in done))
        except Unreachable as error:
            self._log(str(error))

    def push(self) -> None:
        """Put the shards that are finished, and the record of the stage; in the thread of the stage.

        Raises:
            RunError: when another run has put other rows of one of them.
            Unreachable: when they cannot be put now.
        """
        new = frozenset(self._new)
        self._finished |= self.stage.push_shards(self.held.count, dict(self._finished))
        self._new -= new

    def stop(self) -> None:
        """Interrupt everything that waits for another run."""
        self._stopped = True
        self._wake()

    @asynccontextmanager
    async def shard(
        self, index: int, is_usable: IsUsable, turns: Sequence[AbstractAsyncContextManager[object]]
    ) -> AsyncIterator[bool]:
        """Give whether a shard is to be done here, or was done by another run and is here now.

        Args:
            index: the shard.
            is_usable: whether the run can use it as it is.
            turns: are entered before it is taken; they limit how many are.

        Raises:
            Interrupted: when the run is stopped while it waits.
        """
        while not await self._is_had(index, is_usable):
            async with AsyncExitStack() as stack:
                for turn in turns:
                    await stack.enter_async_context(turn)
                if not self._is_new(index) and await self._take(index) and not self._is_new(index):
                    replaced = self.stage.version(index, self.held.count)
                    self._working += 1
                    try:
                        yield True
                    finally:
                        self._working -= 1
                    self._finished[index] = replaced
                    self._new.add(index)
                    return
            while index in self._waiting:
                await self._next_look()
        yield False

    def _is_new(self, index: int) -> bool:
        """Return whether something was seen of a shard in the shared state that this run has not looked at."""
        return self.stage.version(index, self.held.count) not in (None, self._useless.get(index))

    async def _is_had(self, index: int, is_usable: IsUsable) -> bool:
        """Return whether a shard is finished in the shared state and is here now."""
        while self._is_new(index):
            there = self.stage.version(index, self.held.count)
            fresh = there != self._before[index]
            try:
                if await self._ask(
                    self.stage.fetch, index, self.held.count, lambda record, fresh=fresh: is_usable(record, fresh)
                ):
                    return True
                self._useless[index] = str(there)
            except Unreachable as error:
                self._log(str(error))
                await self._next_look()
        return False

    async def _take(self, index: int) -> bool:
        """Try to take the lease of a shard, and look at the shared state after that."""
        if self._stopped:
            raise Interrupted
        try:
            holder = await self._lease(self.held.take, index)
            if holder is None:
                await self._look()
                if index in self.held.inherited:
                    await self._catching_up()
                return True
        except Unreachable as error:
            self._log(str(error))
            holder = Holder("", "another run (the shared state cannot be asked)")
        self._waiting[index] = holder
        return False

    async def _next_look(self) -> None:
        if self._stopped:
            raise Interrupted
        await self._woken.wait()
        if self._watching is not None and self._watching.done():
            self._watching.result()  # what has ended it would otherwise be waited for without end

    def _wake(self) -> None:
        woken, self._woken = self._woken, asyncio.Event()
        woken.set()

    async def _watch(self) -> None:
        """Look for what others have finished, and for runs that have ended, while something is waited for."""
        try:
            while True:
                await asyncio.sleep(leases.POLL_S)
                if self._waiting:
                    with suppress(Unreachable):  # it is tried again
                        if not self._working and self._new:  # who is waited for may wait for these
                            await self._ask(self.push)
                        await self._look_at_others()
                self._tell()
                self._wake()
        finally:
            asyncio.get_running_loop().call_soon(self._wake)

    async def _look_at_others(self) -> None:
        await self._look()
        ended = {""}  # of those it is not known who they are
        for run in {holder.run for holder in self._waiting.values()} - ended:
            if await self._lease(self.held.runs.holder, run) is None:
                ended.add(run)
        for index, holder in list(self._waiting.items()):
            if holder.run in ended or self._is_new(index):
                del self._waiting[index]

    def _tell(self) -> None:
        who = sorted({holder.who for holder in self._waiting.values()})
        number = len(self._waiting)
        text = (
            f"{self.stage.folder.name}: waiting for {' and '.join(who)} to finish {number} shard{'s'[: number != 1]}, "
            f"until it ends or shows no sign of life for {leases.EXPIRES_S:g} s"
        )
        if self._working or not who:
            text = ""
        if text != self._told:
            self._notify(text)
            self._told = text


class _Coalesced:
    """Does something once for all who ask for it before it begins."""

    def __init__(self, work: Callable[[], Awaitable[Any]]) -> None:
        self._work = work
        self._turn = asyncio.Lock()
        self._next: asyncio.Task[None] | None = None

    async def __call__(self) -> None:
        if self._next is None:
            self._next = asyncio.create_task(self._begin())
        await asyncio.shield(self._next)

    async def _begin(self) -> None:
        async with self._turn:
            self._next = None  # who asks from now on may have changed something after this has looked
            await self._work()
