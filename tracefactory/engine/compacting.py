"""Merging the small segments of a shared state while a run goes on, by one run of all machines at a time."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path

from tracefactory.core.errors import RunError
from tracefactory.store.shared.compaction import Compaction
from tracefactory.store.shared.leases import SharedLease, clock_of
from tracefactory.store.shared.objects import Objects

FIRST_S = 5.0
"""So long after the beginning of a run it looks for something to merge: short runs do not."""
EVERY_S = 600.0
LEASE = "compaction"

Log = Callable[..., None]


@asynccontextmanager
async def compacting(folder: Path, objects: Objects, run: str, log: Log) -> AsyncIterator[None]:
    """Merge small segments soon and then every `EVERY_S` seconds; what fails is logged and tried again.

    Args:
        folder: the folder for the indexes of the shared state here.
        objects: the shared state.
        run: the run.
        log: writes to the log of the run.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="compaction") as thread:
        task = asyncio.create_task(_repeat(thread, folder, objects, run, log))
        try:
            yield
        finally:
            task.cancel()
            ended = await asyncio.gather(task, return_exceptions=True)
            if isinstance(ended[0], Exception):  # a defect, which must not cost the run
                log("shared_state", text=f"segments were no longer merged: {ended[0]!r}")


async def _repeat(thread: ThreadPoolExecutor, folder: Path, objects: Objects, run: str, log: Log) -> None:
    held = threading.Event()
    compaction = Compaction(folder, objects, held.is_set)
    ask = asyncio.get_running_loop().run_in_executor
    await asyncio.sleep(FIRST_S)
    while True:
        try:
            if await ask(thread, lambda: compaction.is_due(clock_of(objects, run))):
                await _turn(thread, compaction, held, objects, run, log)
        except (RunError, OSError) as error:
            log("shared_state", text=f"segments were not merged: {error}")
        await asyncio.sleep(EVERY_S)


async def _turn(
    thread: ThreadPoolExecutor, compaction: Compaction, held: threading.Event, objects: Objects, run: str, log: Log
) -> None:
    """Merge and delete while the lease is held."""

    def work() -> tuple[int, int]:
        deleted, merged = compaction.delete(clock_of(objects, run)), 0
        while held.is_set() and (count := compaction.merge(clock_of(objects, run))):
            merged += count
        return merged, deleted

    async with SharedLease(objects, LEASE, run, lambda text: None, lambda why: held.clear()):
        held.set()
        working = asyncio.get_running_loop().run_in_executor(thread, work)
        try:
            merged, deleted = await asyncio.shield(working)
        finally:
            held.clear()  # where the run ends, the work does at its next step, and the lease is given back after it
            await asyncio.wait([working])
    log("shared_segments", merged=merged, deleted=deleted)
