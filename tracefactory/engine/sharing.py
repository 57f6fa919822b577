"""What a run does with a state that several machines share (`store.shared`): pulls, puts and leases.

Everything is pulled before the run is planned. During the run, completions are put within seconds, finished shards
every `SYNC_S` seconds, and what other machines have put is pulled as often. A stage that is done as a whole is leased,
and of one that is done shard by shard the shards, which several machines divide (`engine.dividing`).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

from tracefactory.core.errors import Interrupted, RunError
from tracefactory.core.pipeline import Pipeline, StageSpec
from tracefactory.engine.compacting import compacting
from tracefactory.engine.dividing import Division, IsUsable, taken_at_once
from tracefactory.engine.executors.base import host_of
from tracefactory.engine.identity import identities
from tracefactory.store.shared import leases
from tracefactory.store.shared.batches import SharedBatches
from tracefactory.store.shared.cloud import open_objects
from tracefactory.store.shared.completions import SharedCompletions
from tracefactory.store.shared.leases import SharedLease, clock_of
from tracefactory.store.shared.objects import Objects, Unreachable
from tracefactory.store.shared.runs import pull_runs, push_run
from tracefactory.store.shared.shards import LivingRuns, Members, ShardLeases, lease_of_run
from tracefactory.store.shared.spend import pull_spend, push_spend
from tracefactory.store.shared.stages import SharedStage
from tracefactory.store.stages import StageFolder

SYNC_S = 30.0
_TICK_S = 1.0
_FLUSH_S = 60.0
"""What is not put yet at the end of a run is tried for so long."""

Tell = Callable[[str], None]


class Sharing:
    """The state of a run that this machine alone uses: there is nothing to do. See `SharedState` for the other."""

    def pull(self) -> None:
        """Put what only this machine has, and fetch what the shared state has of the pipeline.

        Raises:
            RunError: when what was spent is damaged.
            Unreachable: when the shared state cannot be asked.
        """

    @asynccontextmanager
    async def during(self, run: str, log: Callable[..., None], stop: Tell) -> AsyncIterator[None]:
        """Keep the shared state up to date while a run goes on, and put the rest when it has ended.

        Args:
            run: the run.
            log: writes to the log of the run.
            stop: stops the run, which has lost a lease.

        Raises:
            RunError: when another run spends within the same caps, or a lease was lost.
            Unreachable: when paid completions are only on this machine in the end.
        """
        yield

    @asynccontextmanager
    async def stage(
        self, folder: Path, run: str, notify: Tell, stop: Tell, *, shards: int | None
    ) -> AsyncIterator[None]:
        """Work on a stage: what others have of it is pulled first, and put in the end.

        Args:
            folder: the folder of the stage.
            run: the run.
            notify: is told who is waited for.
            stop: stops the run, which has lost a lease.
            shards: the number of its shards, which are divided with other runs; None if it is done as a whole.

        Raises:
            RunError: when the lease was lost.
            Unreachable: when the shared state cannot be asked.
        """
        yield

    @asynccontextmanager
    async def shard(
        self,
        stage: StageSpec[Any],
        folder: Path,
        index: int,
        is_usable: IsUsable,
        slots: AbstractAsyncContextManager[object],
    ) -> AsyncIterator[bool]:
        """Give whether a shard of a stage is to be done here, or was done by another run and is here now.

        Args:
            stage: the stage, on whose shards the run works.
            folder: its folder.
            index: the shard.
            is_usable: whether what another run has made of it can be used.
            slots: is entered while it is done here.

        Raises:
            Interrupted: when the run is stopped while it waits for another one.
        """
        async with slots:
            yield True

    def stop(self) -> None:
        """Interrupt what waits for other runs."""

    def put_run(self, folder: Path) -> None:
        """Put the records of a run that has ended; nothing is owed where that fails, which the log of the run tells."""

    def close(self) -> None:
        """Close the files."""


def sharing_of(pipeline: Pipeline) -> Sharing:
    """Return how a run shares its state.

    Args:
        pipeline: the pipeline, whose project may name a shared state.

    Raises:
        UserError: when its URL names no object store.
        Unreachable: when it cannot be used.
    """
    return SharedState(pipeline, open_objects(pipeline.project.shared)) if pipeline.project.shared else Sharing()


class SharedState(Sharing):
    """The state of a pipeline that several machines share.

    Args:
        pipeline: the pipeline.
        objects: the shared state.
    """

    def __init__(self, pipeline: Pipeline, objects: Objects) -> None:
        self.pipeline, self.root, self.objects = pipeline, pipeline.project.state_dir, objects
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="sharing")  # one at a time
        self._leasing = ThreadPoolExecutor(8, thread_name_prefix="leasing")
        self._completions = SharedCompletions(self.root, objects)
        self._flush = partial(self._completions.push, flush=True)
        has_batches = any(spec.batching is not None for spec in pipeline.models.values())
        self._batches = SharedBatches(self.root, objects, self._flush) if has_batches else None
        self._stages: dict[Path, SharedStage] = {}
        self._written: dict[Path, Callable[[], object]] = {}  # stages that are worked on, with what puts them
        self._divided: dict[Path, Division] = {}
        self._turns: dict[tuple[str, int], asyncio.Semaphore] = {}  # by host and number of shards
        self._runs: LivingRuns | None = None
        self._stopped = False
        self._log: Callable[..., None] = lambda event, **what: None

    def pull(self) -> None:
        self._completions.pull()
        self._flush()
        for stage_id, identity in identities(self.pipeline).items():
            self._stage(StageFolder(self.root, stage_id, identity.key).path).pull()
        pull_runs(self.root, self.objects)
        pull_spend(self.root, self.pipeline.ledger_name, self.objects)

    @asynccontextmanager
    async def during(self, run: str, log: Callable[..., None], stop: Tell) -> AsyncIterator[None]:
        self._log = log
        async with AsyncExitStack() as stack:
            if self.pipeline.caps:
                name = f"spend/{self.pipeline.ledger_name}"
                await stack.enter_async_context(SharedLease(self.objects, name, run, self._wait, stop, waits=False))
                await self._do(pull_spend, self.root, self.pipeline.ledger_name, self.objects)
            self._runs = LivingRuns(self.objects, run)
            await stack.enter_async_context(SharedLease(self.objects, lease_of_run(run), run, self._wait, stop))
            if self._batches is not None:
                lease = SharedLease(self.objects, self._batches.lease(run), run, self._wait, stop)
                await stack.enter_async_context(lease)
                await self._take_batches(run)
            try:
                async with self._syncing(stop), self._compacting(run):
                    yield
            except BaseException:
                try:
                    await self._finish(run)
                except RunError as error:  # what ended the run is told, and the next run puts the rest
                    log("shared_state", text=str(error))
                raise
            await self._finish(run)

    @asynccontextmanager
    async def stage(
        self, folder: Path, run: str, notify: Tell, stop: Tell, *, shards: int | None
    ) -> AsyncIterator[None]:
        lease = SharedLease(self.objects, f"stages/{folder.name}", run, notify, stop)
        members = self._members(folder)
        if shards is not None:
            async with lease:  # nobody else begins with it meanwhile
                await self._until_free(members, shards, notify)
                await self._lease(members.add, shards)
            async with self._dividing(folder, run, members, shards, notify):
                yield
            return
        async with lease:
            await self._until_free(members, None, notify)
            await self._catch_up(run, folder)
            stage = self._stage(folder)
            self._written[folder] = stage.push
            try:
                yield
            finally:
                del self._written[folder]
                await self._try(stage.push)

    @asynccontextmanager
    async def shard(
        self,
        stage: StageSpec[Any],
        folder: Path,
        index: int,
        is_usable: IsUsable,
        slots: AbstractAsyncContextManager[object],
    ) -> AsyncIterator[bool]:
        division = self._divided[folder]
        host, count = host_of(stage, self.pipeline), division.held.count
        at_once = taken_at_once(stage, self.pipeline, count)
        turns = self._turns.setdefault((host, count), asyncio.Semaphore(at_once))
        async with division.shard(index, is_usable, (slots, turns)) as here:
            yield here

    def stop(self) -> None:
        self._stopped = True
        for division in self._divided.values():
            division.stop()

    def close(self) -> None:
        self._thread.shutdown()
        self._leasing.shutdown()
        self._completions.close()

    def put_run(self, folder: Path) -> None:
        try:
            push_run(folder, self.objects)
        except Unreachable as error:
            self._log("shared_state", text=str(error))

    def _wait(self, text: str) -> None:
        self._log("waiting", text=text)

    async def _take_batches(self, run: str) -> None:
        """Take over what a lost machine has submitted to a provider."""
        if self._batches is not None:
            clock = partial(clock_of, self._batches.objects, run)
            if taken := await self._do(self._batches.pull, clock):
                self._log("shared_batches", taken=taken)

    async def _catch_up(self, run: str, folder: Path | None = None) -> None:
        """Fetch what others have of a stage, and what they have paid for."""
        if folder is not None:
            await self._do(self._stage(folder).pull)
        await self._do(self._completions.pull)
        await self._take_batches(run)

    @asynccontextmanager
    async def _dividing(
        self, folder: Path, run: str, members: Members, shards: int, notify: Tell
    ) -> AsyncIterator[None]:
        """Divide the shards of a stage with other runs, which see this one as a member."""

        def log(text: str) -> None:
            self._log("shared_state", text=text)

        await self._catch_up(run, folder)
        held = ShardLeases(members.runs, folder.name, shards)
        catch_up = partial(self._catch_up, run)
        division = Division(self._stage(folder), held, self._do, self._lease, catch_up, notify, log)
        self._divided[folder], self._written[folder] = division, division.push
        if self._stopped:
            division.stop()
        try:
            async with division:
                yield
        finally:
            del self._divided[folder]
            if division.is_put:
                del self._written[folder]
            try:
                await self._lease(members.remove, shards)
            except Unreachable as error:  # it counts until the run ends
                log(str(error))

    async def _until_free(self, members: Members, shards: int | None, notify: Tell) -> None:
        """Wait until nobody works on a stage in a way in which this run cannot take part."""
        while (found := await self._lease(members.in_the_way, shards)) is not None:
            if self._stopped:
                raise Interrupted
            notify(f"waiting for {found.who}, until it ends or shows no sign of life for {leases.EXPIRES_S:g} s")
            await asyncio.sleep(leases.POLL_S)

    def _members(self, folder: Path) -> Members:
        assert self._runs is not None  # since `during` began
        return Members(self._runs, folder.name)

    def _stage(self, folder: Path) -> SharedStage:
        return self._stages.setdefault(folder, SharedStage(folder, self.objects, self._flush))

    def _compacting(self, run: str) -> AbstractAsyncContextManager[None]:
        return compacting(self._completions.folder, self.objects, run, self._log)

    @asynccontextmanager
    async def _syncing(self, stop: Tell) -> AsyncIterator[None]:
        """Keep the shared state up to date; when that fails in a way that does not pass, the run is stopped."""

        def ended(task: asyncio.Task[None]) -> None:
            if not task.cancelled() and (error := task.exception()) is not None:
                stop(f"the shared state is no longer kept up to date: {error!r}")

        task = asyncio.create_task(self._sync(stop))
        task.add_done_callback(ended)
        try:
            yield
        finally:
            task.cancel()
            failures = [one for one in await asyncio.gather(task, return_exceptions=True) if isinstance(one, Exception)]
        for failure in failures:
            raise failure

    async def _sync(self, stop: Tell) -> None:
        synced = time.monotonic()
        while True:
            await asyncio.sleep(_TICK_S)
            await self._do(self._completions.push)
            if self._batches is not None:
                await self._try(self._batches.push)
            if time.monotonic() - synced < SYNC_S:
                continue
            try:
                for push in tuple(self._written.values()):
                    await self._try(push)
                await self._try(push_spend, self.root, self.pipeline.ledger_name, self.objects)
                await self._try(self._completions.pull)
            except RunError as error:  # e.g. another machine has written a stage
                stop(str(error))
            synced = time.monotonic()

    async def _finish(self, run: str) -> None:
        """Put what is not put yet: completions first, which are paid for."""
        end = time.monotonic() + _FLUSH_S
        while True:
            try:
                await self._do(self._flush)
                break
            except Unreachable as error:
                if time.monotonic() > end:
                    raise Unreachable(
                        f"paid completions are only in {self.root} on this machine: {error}. Run the same command "
                        "again when it can be reached: they are put, and nothing is paid again"
                    ) from error
                await asyncio.sleep(_TICK_S)
        if self._batches is not None:
            await self._try(self._batches.push)
        await self._try(push_spend, self.root, self.pipeline.ledger_name, self.objects)
        for push in self._written.values():
            await self._try(push)
        for folder, stage in self._stages.items():
            if await self._do(stage.is_ahead):  # e.g. it was finished here before the project had a shared state
                async with SharedLease(self.objects, f"stages/{folder.name}", run, self._wait, self._wait):
                    if await self._lease(self._members(folder).in_the_way, None) is None:  # otherwise they finish it
                        await self._do(stage.pull)
                        await self._try(stage.push)

    async def _do(self, work: Callable[..., Any], *arguments: object) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, *arguments)

    async def _lease(self, work: Callable[..., Any], *arguments: object) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._leasing, work, *arguments)

    async def _try(self, work: Callable[..., Any], *arguments: object) -> None:
        """Do what is done again later if the shared state cannot be asked now: by this run or by the next one."""
        try:
            await self._do(work, *arguments)
        except Unreachable as error:
            self._log("shared_state", text=str(error))
