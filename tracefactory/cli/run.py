"""`tracefactory run`."""

from __future__ import annotations

import asyncio
import sys
from enum import StrEnum
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
    no_requests: Annotated[
        bool,
        typer.Option("--no-requests", help="Send nothing: work with the stored completions; the others stay owed."),
    ] = False,
) -> None:
    """Make the dataset of a pipeline. Finished stages are not repeated, and stored completions are not paid again."""
    from rich.console import Console

    from tracefactory.cli.show import print_outcome
    from tracefactory.config import load_pipeline
    from tracefactory.engine.display import Display
    from tracefactory.engine.run import run_pipeline

    check_kind(retry_failed)
    loaded = load_pipeline(pipeline, profile=profile, sets=with_budget(sets, budget), limit=limit)
    display = Display(Console(file=sys.stderr), progress.value)
    outcome = asyncio.run(run_pipeline(loaded, display, retry_kind=retry_failed, sends=not no_requests))
    print_outcome(outcome, loaded.project.state_dir, as_json=json)
