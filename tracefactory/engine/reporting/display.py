"""The display of a run in progress, on stderr: a live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext, suppress
from types import FrameType
from typing import Any, Literal

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from tracefactory.engine.executors.base import Executor
from tracefactory.engine.flow import Flow, StageRun
from tracefactory.engine.reporting.plain import PlainLines
from tracefactory.engine.reporting.progress import Live as Numbers
from tracefactory.engine.reporting.progress import Progress, snapshot, time_left
from tracefactory.engine.reporting.report import FunnelLine, funnel
from tracefactory.engine.reporting.telemetry import MetricsPage, exporter, prometheus_text
from tracefactory.engine.runs import End

_LIVE_S, _LOOK_S, _PLAIN_S = 0.5, 2.0, 10.0
SHOW_CURSOR = "\x1b[?25h"
LEFT = "\nstopped at once; answers in flight are lost and may be billed: run the same command to continue\n"
STOPPING = "stopping: no new requests are sent; those in flight are finished and stored (Ctrl-C again to exit now)"


class Display:
    """Displays a run and handles Ctrl-C and SIGTERM.

    The first drains the run, a second Ctrl-C ends the process at once. After SIGTERM, which schedulers send before
    SIGKILL, the process also ends when `run: grace_s` is over; a second SIGTERM changes nothing, because it can be the
    same one: SLURM sends it to all processes of a job, and a script passes on its own.
    """

    def __init__(self, console: Console, lines: Literal["auto", "plain", "json"] = "auto") -> None:
        """Display on a console: a table on a terminal and lines elsewhere (`auto`), or always lines, or JSON lines."""
        self.console = console
        self.lines = lines

    @asynccontextmanager
    async def __call__(self, flow: Flow, executor: Executor) -> AsyncIterator[None]:
        page = self._page(flow)
        loop = asyncio.get_running_loop()
        drains: set[asyncio.Task[None]] = set()
        received: set[int] = set()

        grace_s = flow.pipeline.run.grace_s
        last = threading.Timer(grace_s, self._leave, (flow,))  # of a thread, which also runs when the loop is blocked
        last.daemon = True

        def drain(number: int) -> None:
            self._say(STOPPING if number == signal.SIGINT else f"{STOPPING}, at the latest in {grace_s:g} s")
            flow.run.log("stopping", signal=signal.Signals(number).name)
            drains.add(loop.create_task(flow.stop()))

        def interrupted(number: int, frame: FrameType | None) -> None:
            before, repeated = bool(received), number in received
            received.add(number)  # first of all: the next signal can interrupt this
            if before and number == signal.SIGINT:
                self._leave(flow)
            if number == signal.SIGTERM and not repeated:
                last.start()
            if not before:
                loop.call_soon_threadsafe(drain, number)

        before = {one: signal.signal(one, interrupted) for one in (signal.SIGINT, signal.SIGTERM)}
        watching = loop.create_task(self._watch(flow, executor, page))
        try:
            yield
        finally:
            watching.cancel()
            with suppress(asyncio.CancelledError):
                await watching
            self._warn(flow)
            if page is not None:
                page.close()
            for one, handler in before.items():
                signal.signal(one, handler)

    def _say(self, text: str) -> None:
        """Print a line, with the time of day where lines are kept, or as JSON."""
        if self.lines == "json":
            self._print_json(message=text)
            return
        stamp = "" if self._has_table else f"{time.strftime('%H:%M:%S')} "
        self.console.print(f"{stamp}{text}", markup=False, highlight=False, soft_wrap=True)

    def _print_json(self, **what: Any) -> None:
        self.console.file.write(json.dumps({"time": time.time(), **what}) + "\n")
        self.console.file.flush()

    @property
    def _has_table(self) -> bool:
        return self.lines == "auto" and self.console.is_terminal

    def _page(self, flow: Flow) -> MetricsPage | None:
        """Return the page for Prometheus that the pipeline asks for.

        Raises:
            UserError: when its address cannot be used.
        """
        run = flow.pipeline.run
        if run.metrics_port is None:
            return None
        page = MetricsPage(run.metrics_host, run.metrics_port)
        flow.run.log("metrics", host=page.host, port=page.port)
        self._say(f"metrics: http://{page.host}:{page.port}/metrics")
        return page

    def _leave(self, flow: Flow) -> None:
        """End the process at once; servers and workers of this process end with it, see `core.processes`."""
        flow.run.log("left", exit_status=End.INTERRUPTED.exit_status)
        os.write(2, (SHOW_CURSOR if self.console.is_terminal else "").encode() + LEFT.encode())
        os._exit(End.INTERRUPTED.exit_status)

    async def _watch(self, flow: Flow, executor: Executor, page: MetricsPage | None) -> None:
        export, logged = exporter(), float("-inf")
        before: Progress | None = None
        plain, table = PlainLines(self._say), self._has_table
        with Live(console=self.console, auto_refresh=False, transient=True) if table else nullcontext() as live:
            while True:
                now = Progress(time.monotonic(), await executor.progress(), await executor.models())
                for run in flow.stages.values():
                    if run.paying is None and (paid := now.stages.get(run.stage.id, {}).get("requests")):
                        run.paying = (time.time(), paid)
                    told = [(name, now.models[name].notice) for name in run.stage.model_names if name in now.models]
                    run.notice = "; ".join(f"{name}: {flow.run.text(notice)}" for name, notice in told if notice)
                if live is not None:
                    live.update(render(flow, now, before), refresh=True)
                self._warn(flow)
                if now.at - logged >= _PLAIN_S:
                    logged = now.at
                    found = snapshot(flow, now, before)
                    flow.run.log("progress", **found)
                    if export is not None:
                        export(found)
                    if page is not None:
                        page.text = prometheus_text(found)
                    if self.lines == "json":
                        self._print_json(**found)
                    elif live is None:
                        plain.show(_plain_lines(flow, now))
                    before = now
                await asyncio.sleep(_LIVE_S if live is not None else _LOOK_S)

    def _warn(self, flow: Flow) -> None:
        """Print and log that most of a cap is spent, once."""
        for warning in flow.budget.warnings():
            flow.run.log("budget_warning", text=warning)
            if self.lines == "json":
                self._print_json(warning=warning)
            else:
                self._say(warning)


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
            servers.append(f"  {name}: {flow.run.text(status.notice)}")
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
    """Return the requests in flight, those that wait for another process, and the time left, where they are known."""
    left, in_flight, elsewhere = (
        time_left(run, live, flow),
        int(live.get("in_flight", 0)),
        int(live.get("elsewhere", 0)),
    )
    parts = [f"{in_flight} in flight"] if in_flight or left else []
    parts += [f"{elsewhere} wait for another process"] if elsewhere else []
    if left is not None:
        clock = f"{int(left.seconds // 60)}:{int(left.seconds % 60):02d} left"
        parts.append(f"{'at most ' if left.at_most else ''}{clock}")
    return ", ".join(parts)


def _plain_lines(flow: Flow, now: Progress) -> list[tuple[str, str, bool]]:
    """Return the lines of all stages for `PlainLines.show`."""
    return [(name, _plain(run, now.stages.get(name, {}), flow), run.record.done()) for name, run in flow.stages.items()]


def _plain(run: StageRun, live: Numbers, flow: Flow) -> str:
    line = _line(run, live, flow)
    if line.state == "waits":
        return ""
    counts = f"in {line.tally.rows_in} kept {line.tally.kept} dropped {line.tally.dropped} errors {line.tally.errors}"
    requests = f" paid requests {line.paid.get('requests', 0):.0f}" if live else ""
    return f"{line.id}: {line.state}; {counts}{requests}"
