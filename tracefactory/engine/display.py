"""The display of a run in progress, on stderr: a live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from types import FrameType

from rich.console import Console, RenderableType
from rich.live import Live

from tracefactory.engine.executors.base import Executor
from tracefactory.engine.flow import Flow, StageRun
from tracefactory.engine.report import FunnelLine, funnel

_LIVE_S, _PLAIN_S = 0.5, 10.0
INTERRUPTED = 130
SHOW_CURSOR = "\x1b[?25h"
LEFT = "\nstopped at once; answers in flight are lost and may be billed: run the same command to continue\n"
STOPPING = "stopping: no new requests are sent; those in flight are finished and stored (Ctrl-C again to exit now)"


class Display:
    """Displays a run and handles Ctrl-C and SIGTERM: the first drains the run, the second ends the process at once."""

    def __init__(self, console: Console) -> None:
        self.console = console

    @asynccontextmanager
    async def __call__(self, flow: Flow, executor: Executor) -> AsyncIterator[None]:
        loop = asyncio.get_running_loop()
        drains: set[asyncio.Task[None]] = set()
        stopping = False

        def drain() -> None:
            self.console.print(STOPPING)
            drains.add(loop.create_task(flow.stop()))

        def interrupted(number: int, frame: FrameType | None) -> None:
            nonlocal stopping
            if stopping:  # servers and workers of this process end with it; see `core.processes`
                os.write(2, (SHOW_CURSOR if self.console.is_terminal else "").encode() + LEFT.encode())
                os._exit(INTERRUPTED)
            stopping = True
            loop.call_soon_threadsafe(drain)

        before = {one: signal.signal(one, interrupted) for one in (signal.SIGINT, signal.SIGTERM)}
        watching = loop.create_task(self._watch(flow, executor))
        try:
            yield
        finally:
            watching.cancel()
            with suppress(asyncio.CancelledError):
                await watching
            for one, handler in before.items():
                signal.signal(one, handler)

    async def _watch(self, flow: Flow, executor: Executor) -> None:
        if self.console.is_terminal:
            with Live(console=self.console, auto_refresh=False, transient=True) as live:
                while True:
                    live.update(render(flow, await _refresh(flow, executor)), refresh=True)
                    await asyncio.sleep(_LIVE_S)
        printed: dict[str, str] = {}
        while True:
            numbers = await _refresh(flow, executor)
            for run in flow.stages.values():
                line = _plain(run, numbers.get(run.stage.id, {}), flow)
                if line and printed.get(run.stage.id) != line:
                    printed[run.stage.id] = line
                    self.console.print(line, highlight=False, soft_wrap=True)
            await asyncio.sleep(_PLAIN_S)


async def _refresh(flow: Flow, executor: Executor) -> Mapping[str, Mapping[str, float]]:
    """Return the live numbers, and set the notices of the stages' models."""
    numbers, notices = await executor.progress(), await executor.notices()
    for run in flow.stages.values():
        run.notice = "; ".join(f"{name}: {notices[name]}" for name in run.stage.model_names if name in notices)
    return numbers


def render(flow: Flow, progress: Mapping[str, Mapping[str, float]]) -> RenderableType:
    """Return the current funnel."""
    lines = [_line(run, progress.get(run.stage.id, {}), flow) for run in flow.stages.values()]
    return funnel(f"{flow.pipeline.name} {flow.pipeline.version}", lines)


def _line(run: StageRun, live: Mapping[str, float], flow: Flow) -> FunnelLine:
    seconds = time.time() - run.started if run.started else 0.0
    paid = run.paid if run.record.done() else {**live, "seconds": seconds}
    return FunnelLine(run.stage.id, run.tally, paid, _state(run, live, flow))


def _state(run: StageRun, live: Mapping[str, float], flow: Flow) -> str:
    if run.record.done():
        return "stopped" if run.record.exception() else "cached" if run.cached else "done"
    if run.waiting:
        return run.waiting
    if run.started is None:
        return "waits"
    if run.notice:
        return run.notice
    left = time_left(run, live, flow)
    shards = f"{run.finished}/{len(run.done)} shards" if run.done else "runs"
    return f"{shards}, {left}" if left else shards


def time_left(run: StageRun, live: Mapping[str, float], flow: Flow) -> str:
    """Return the requests in flight and the time left, estimated from the speed of this stage so far.

    The time is an upper bound when answers determine further requests; the text is empty without an estimate.
    """
    inputs = [flow.stages[source] for source in run.stage.inputs]
    paid, done = live.get("requests", 0), live.get("done", 0)
    if not paid or run.started is None or not all(one.record.done() and not one.record.exception() for one in inputs):
        return ""
    bound = live.get("at_most", 0)
    if bound and live.get("shards", 0) < len(run.done):
        return ""  # shards that have not started have not reported their bounds
    total = bound or run.op.rows_made(run.stage, sum(one.tally.kept for one in inputs))
    if total is None:
        return ""
    seconds = max(0.0, total - done) * (time.time() - run.started) / paid
    left = f"{int(seconds // 60)}:{int(seconds % 60):02d} left"
    return f"{int(live.get('in_flight', 0))} in flight, {'at most ' if bound else ''}{left}"


def _plain(run: StageRun, live: Mapping[str, float], flow: Flow) -> str:
    line = _line(run, live, flow)
    if line.state == "waits":
        return ""
    counts = f"in {line.tally.rows_in} kept {line.tally.kept} dropped {line.tally.dropped} errors {line.tally.errors}"
    requests = f" paid requests {line.paid.get('requests', 0):.0f}" if live else ""
    return f"{line.id}: {line.state}; {counts}{requests}"
