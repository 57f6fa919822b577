"""`tracefactory run`."""

from __future__ import annotations

import asyncio
import signal
import sys
from enum import StrEnum
from types import FrameType
from typing import Annotated

import typer

from tracefactory.cli.options import (
    Budget,
    Json,
    Limit,
    PipelineFile,
    Profile,
    RetryFailed,
    Sets,
    check_kind,
    with_budget,
)
from tracefactory.core.errors import Interrupted


class Lines(StrEnum):
    """The ways to show progress."""

    AUTO = "auto"
    PLAIN = "plain"
    JSON = "json"


def run(
    pipeline: PipelineFile,
    profile: Profile = None,
    sets: Sets = None,
    budget: Budget = None,
    limit: Limit = None,
    json: Json = False,
    retry_failed: RetryFailed = None,
    progress: Annotated[
        Lines, typer.Option(help="How progress is shown on stderr: a table on a terminal, lines, or JSON lines.")
    ] = Lines.AUTO,
    metrics_port: Annotated[
        int | None,
        typer.Option(min=0, max=65535, help="Serve the progress to Prometheus at this port; 0 takes a free one."),
    ] = None,
    no_requests: Annotated[
        bool,
        typer.Option("--no-requests", help="Send nothing: work with the stored completions; the others stay owed."),
    ] = False,
) -> None:
    """Make the dataset of a pipeline. Finished stages are not repeated, and stored completions are not paid again."""
    from rich.console import Console

    from tracefactory.cli.show import print_outcome, stdout_console
    from tracefactory.config import load_pipeline
    from tracefactory.engine.process import settle
    from tracefactory.engine.reporting.display import Display
    from tracefactory.engine.run import run_pipeline
    from tracefactory.engine.runs import RunOutcome

    settle()
    signal.signal(signal.SIGTERM, interrupt)  # until the display has its own handler
    check_kind(retry_failed)
    changed = with_budget(sets, budget)
    if metrics_port is not None:
        changed.append(f"run.metrics_port={metrics_port}")
    loaded = load_pipeline(pipeline, profile=profile, sets=changed, limit=limit)
    state_dir, stderr = loaded.project.state_dir, Console(file=sys.stderr)

    def unfinished(outcome: RunOutcome) -> None:
        told = outcome if json else outcome.model_copy(update={"reason": ""})  # the last line on stderr says it
        print_outcome(told, state_dir, as_json=json, console=stderr)

    running = run_pipeline(
        loaded, Display(stderr, progress.value), retry_kind=retry_failed, sends=not no_requests, unfinished=unfinished
    )
    print_outcome(asyncio.run(running), state_dir, as_json=json, console=stdout_console())


def interrupt(number: int, frame: FrameType | None) -> None:
    raise Interrupted
