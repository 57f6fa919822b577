"""The display of a run in progress, on stderr: a live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext, suppress
from types import FrameType
from typing import Literal

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from tracefactory.engine.executors.base import Executor
from tracefactory.engine.flow import Flow, StageRun
from tracefactory.engine.progress import Live as Numbers
from tracefactory.engine.progress import Progress, snapshot, time_left
from tracefactory.engine.report import FunnelLine, funnel
from tracefactory.engine.telemetry import exporter

_LIVE_S, _LOOK_S, _PLAIN_S = 0.5, 2.0, 10.0
INTERRUPTED = 130
SHOW_CURSOR = "\x1b[?25h"
LEFT = "\nstopped at once; answers in flight are lost and may be billed: run the same command to continue\n"
STOPPING = "stopping: no new requests are sent; those in flight are finished and stored (Ctrl-C again to exit now)"


class Display:
    """Displays a run and handles Ctrl-C and SIGTERM: the first drains the run, the second ends the process at once."""

    def __init__(self, console: Console, lines: Literal["auto", "plain", "json"] = "auto") -> None:
        """Display on a console: a table on a terminal and lines elsewhere (`auto`), or always lines, or JSON lines."""
        self.console = console
        self.lines = lines

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
            self._warn(flow)
            for one, handler in before.items():
                signal.signal(one, handler)

    async def _watch(self, flow: Flow, executor: Executor) -> None:
        export, logged = exporter(), float("-inf")
        before: Progress | None = None
        printed: dict[str, str] = {}
        table = self.lines == "auto" and self.console.is_terminal
        with Live(console=self.console, auto_refresh=False, transient=True) if table else nullcontext() as live:
            while True:
                now = Progress(time.monotonic(), await executor.progress(), await executor.models())
                for run in flow.stages.values():
                    told = [(name, now.models[name].notice) for name in run.stage.model_names if name in now.models]
                    run.notice = "; ".join(f"{name}: {notice}" for name, notice in told if notice)
                if live is not None:
                    live.update(render(flow, now, before), refresh=True)
                self._warn(flow)
                if now.at - logged >= _PLAIN_S:
                    logged = now.at
                    found = snapshot(flow, now, before)
                    flow.run.log("progress", **found)
                    if export is not None:
                        export(found)
                    if self.lines == "json":
                        self.console.file.write(json.dumps({"time": time.time(), **found}) + "\n")
                        self.console.file.flush()
                    elif live is None:
                        self._print_changes(flow, now, printed)
                    before = now
                await asyncio.sleep(_LIVE_S if live is not None else _LOOK_S)

    def _warn(self, flow: Flow) -> None:
        """Print and log that most of a cap is spent, once."""
        for warning in flow.budget.warnings():
            flow.run.log("budget_warning", text=warning)
            if self.lines == "json":
                self.console.file.write(json.dumps({"time": time.time(), "warning": warning}) + "\n")
            else:
                self.console.print(warning, highlight=False, soft_wrap=True)

    def _print_changes(self, flow: Flow, now: Progress, printed: dict[str, str]) -> None:
        """Print a line for every stage and every held-back model whose line has changed."""
        for run in flow.stages.values():
            line = _plain(run, now.stages.get(run.stage.id, {}), flow)
            if line and printed.get(run.stage.id) != line:
                printed[run.stage.id] = line
                self.console.print(line, highlight=False, soft_wrap=True)


def render(flow: Flow, now: Progress, before: Progress | None) -> RenderableType:
    """Return the current funnel, and a line for every server that is asked."""
    lines = [_line(run, now.stages.get(run.stage.id, {}), flow) for run in flow.stages.values()]
    table = funnel(f"{flow.pipeline.name} {flow.pipeline.version}", lines)
    seconds = now.at - before.at if before is not None else 0.0
    models = {} if before is None else before.models
    earlier = {(name, one.host): one for name, status in models.items() for one in status.endpoints}
    servers = []
    for name, status in now.models.items():
        for one in status.endpoints:
            was = earlier.get((name, one.host))
            per_s = (one.answered - was.answered) / seconds if was is not None and seconds else 0.0
            text = f"• {name} at {one.host}: {one.in_flight} of at most {one.limit} in flight, {per_s:.1f}/s"
            text += f", at most {one.rate:.1f}/s" if one.rate is not None else ""
            text += f", {one.refused:,} refused (429)" if one.refused else ""
            text += f", {one.failed:,} failed" if one.failed else ""
            text += f", paused for {one.paused_s:.0f} s" if one.paused_s >= 1 else ""
            servers.append(text)
        if status.notice:
            servers.append(f"  {name}: {status.notice}")
    return Group(table, *(Text(line) for line in servers))


def _line(run: StageRun, live: Numbers, flow: Flow) -> FunnelLine:
    seconds = time.time() - run.started if run.started else 0.0
    paid = run.paid if run.record.done() else {**live, "seconds": seconds}
    return FunnelLine(run.stage.id, run.tally, paid, _state(run, live, flow))


def _state(run: StageRun, live: Numbers, flow: Flow) -> str:
    if run.record.done():
        return "stopped" if run.record.exception() else "cached" if run.cached else "done"
    if run.waiting:
        return run.waiting
    if run.started is None:
        return "waits"
    if run.notice:
        return run.notice
    left = _left(run, live, flow)
    shards = f"{run.finished}/{len(run.done)} shards" if run.done else "runs"
    return f"{shards}, {left}" if left else shards


def _left(run: StageRun, live: Numbers, flow: Flow) -> str:
    """Return the requests in flight and the time left; empty without an estimate."""
    left = time_left(run, live, flow)
    if left is None:
        return ""
    clock = f"{int(left.seconds // 60)}:{int(left.seconds % 60):02d} left"
    return f"{int(live.get('in_flight', 0))} in flight, {'at most ' if left.at_most else ''}{clock}"


def _plain(run: StageRun, live: Numbers, flow: Flow) -> str:
    line = _line(run, live, flow)
    if line.state == "waits":
        return ""
    counts = f"in {line.tally.rows_in} kept {line.tally.kept} dropped {line.tally.dropped} errors {line.tally.errors}"
    requests = f" paid requests {line.paid.get('requests', 0):.0f}" if live else ""
    return f"{line.id}: {line.state}; {counts}{requests}"
