"""What a run does with a state that several machines share (`store.shared`): pulls, puts and leases.

Everything is pulled before the run is planned. During the run, completions are put within seconds, finished shards
every `SYNC_S` seconds, and what other machines have put is pulled as often. Each stage that is worked on is leased.
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

from tracefactory.core.errors import RunError
from tracefactory.core.pipeline import Pipeline
from tracefactory.engine.compacting import compacting
from tracefactory.engine.identity import identities
from tracefactory.store.shared.batches import SharedBatches
from tracefactory.store.shared.cloud import open_objects
from tracefactory.store.shared.completions import SharedCompletions
from tracefactory.store.shared.leases import SharedLease, clock_of
from tracefactory.store.shared.objects import Unreachable
from tracefactory.store.shared.runs import pull_runs, push_run
from tracefactory.store.shared.spend import pull_spend, push_spend
from tracefactory.store.shared.stages import SharedStage
from tracefactory.store.stages import StageFolder

SYNC_S = 30.0
_TICK_S = 1.0
_FLUSH_S = 60.0
"""What is not put yet at the end of a run is tried for so long."""

Tell = Callable[[str], None]


class Sharing:
    """The shared state of one pipeline and run; does nothing where a project has none.

    Args:
        pipeline: the pipeline, whose project names the shared state.

    Raises:
        UserError: when its URL names no object store.
        Unreachable: when it cannot be used.
    """

    def __init__(self, pipeline: Pipeline) -> None:
        self.pipeline, self.root = pipeline, pipeline.project.state_dir
        self.objects = open_objects(pipeline.project.shared) if pipeline.project.shared else None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="sharing")  # one at a time
        self._completions = SharedCompletions(self.root, self.objects) if self.objects else None
        self._batches = self._shared_batches()
        self._stages: dict[Path, SharedStage] = {}
        self._written: set[Path] = set()  # stages whose lease is held
        self._log: Callable[..., None] = lambda event, **what: None

    def pull(self) -> None:
        """Put what only this machine has, and fetch what the shared state has of the pipeline.

        Raises:
            RunError: when what was spent is damaged.
            Unreachable: when the shared state cannot be asked.
        """
        if self.objects is None or self._completions is None:
            return
        self._completions.pull()
        self._completions.push(flush=True)
        for stage_id, identity in identities(self.pipeline).items():
            self._stage(StageFolder(self.root, stage_id, identity.key).path).pull()
        pull_runs(self.root, self.objects)
        pull_spend(self.root, self.pipeline.ledger_name, self.objects)

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
        if self.objects is None:
            yield
            return
        self._log = log
        async with AsyncExitStack() as stack:
            if self.pipeline.caps:
                name = f"spend/{self.pipeline.ledger_name}"
                say: Tell = lambda text: log("waiting", text=text)  # noqa: E731
                await stack.enter_async_context(SharedLease(self.objects, name, run, say, stop, waits=False))
                await self._do(pull_spend, self.root, self.pipeline.ledger_name, self.objects)
            if self._batches is not None:
                say = lambda text: log("waiting", text=text)  # noqa: E731
                await stack.enter_async_context(SharedLease(self.objects, self._batches.lease(run), run, say, stop))
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
    async def stage(self, folder: Path, run: str, notify: Tell, stop: Tell) -> AsyncIterator[None]:
        """Hold the lease of a stage: what others have of it is pulled first, and put in the end.

        Args:
            folder: the folder of the stage.
            run: the run.
            notify: is told who is waited for.
            stop: stops the run, which has lost a lease.

        Raises:
            RunError: when the lease was lost.
            Unreachable: when the shared state cannot be asked.
        """
        if self.objects is None or self._completions is None:
            yield
            return
        stage = self._stage(folder)
        async with SharedLease(self.objects, f"stages/{folder.name}", run, notify, stop):
            await self._do(stage.pull)
            await self._do(self._completions.pull)
            await self._take_batches(run)
            self._written.add(folder)
            try:
                yield
            finally:
                self._written.discard(folder)
                await self._try(stage.push)

    def close(self) -> None:
        """Close the files."""
        self._thread.shutdown()
        if self._completions is not None:
            self._completions.close()

    def put_run(self, folder: Path) -> None:
        """Put the records of a run that has ended; nothing is owed where that fails, which the log of the run tells."""
        if self.objects is not None:
            try:
                push_run(folder, self.objects)
            except Unreachable as error:
                self._log("shared_state", text=str(error))

    def _shared_batches(self) -> SharedBatches | None:
        """Return the batches of the models, None where no model has any."""
        if self.objects is None or all(spec.batching is None for spec in self.pipeline.models.values()):
            return None
        return SharedBatches(self.root, self.objects, lambda: self._completions.push(flush=True))  # type: ignore[union-attr]

    async def _take_batches(self, run: str) -> None:
        """Take over what a lost machine has submitted to a provider."""
        if self._batches is not None:
            clock = partial(clock_of, self._batches.objects, run)
            if taken := await self._do(self._batches.pull, clock):
                self._log("shared_batches", taken=taken)

    def _stage(self, folder: Path) -> SharedStage:
        assert self.objects is not None
        return self._stages.setdefault(folder, SharedStage(folder, self.objects))

    def _compacting(self, run: str) -> AbstractAsyncContextManager[None]:
        assert self._completions is not None
        assert self.objects is not None
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
        assert self._completions is not None
        synced = time.monotonic()
        while True:
            await asyncio.sleep(_TICK_S)
            await self._do(self._completions.push)
            if self._batches is not None:
                await self._try(self._batches.push)
            if time.monotonic() - synced < SYNC_S:
                continue
            try:
                for folder in tuple(self._written):
                    await self._try(self._stages[folder].push)
                await self._try(push_spend, self.root, self.pipeline.ledger_name, self.objects)
                await self._try(self._completions.pull)
            except RunError as error:  # e.g. another machine has written a stage
                stop(str(error))
            synced = time.monotonic()

    async def _finish(self, run: str) -> None:
        """Put what is not put yet: completions first, which are paid for."""
        assert self._completions is not None
        assert self.objects is not None
        end = time.monotonic() + _FLUSH_S
        while True:
            try:
                await self._do(lambda: self._completions.push(flush=True))  # type: ignore[union-attr]
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
        for folder, stage in self._stages.items():
            if await self._do(stage.is_ahead):  # e.g. it was finished here before the project had a shared state
                say: Tell = lambda text: self._log("waiting", text=text)  # noqa: E731
                async with SharedLease(self.objects, f"stages/{folder.name}", run, say, say):
                    await self._do(stage.pull)
                    await self._try(stage.push)

    async def _do(self, work: Callable[..., Any], *arguments: object) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, *arguments)

    async def _try(self, work: Callable[..., Any], *arguments: object) -> None:
        """Do what is done again later if the shared state cannot be asked now: by this run or by the next one."""
        try:
            await self._do(work, *arguments)
        except Unreachable as error:
            self._log("shared_state", text=str(error))
