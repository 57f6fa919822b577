"""`tracefactory run`."""

from __future__ import annotations

import asyncio
import sys
from enum import StrEnum
from typing import Annotated

import typer

from tracefactory.cli.options import Budget, Json, Limit, PipelineFile, Profile, Sets, with_budget
from tracefactory.core.errors import Mistake, UserError, nearest


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
    retry_failed: Annotated[
        str | None,
        typer.Option(metavar="KIND", help="Try only the failed rows of one kind again, e.g. timeout or bad_request."),
    ] = None,
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
    from tracefactory.serving.failures import FAILURES

    loaded = load_pipeline(pipeline, profile=profile, sets=with_budget(sets, budget), limit=limit)
    if retry_failed is not None and retry_failed not in FAILURES:
        raise UserError(
            Mistake(f"--retry-failed: no kind of failure {retry_failed!r}", hint=nearest(retry_failed, FAILURES))
        )
    display = Display(Console(file=sys.stderr), progress.value)
    outcome = asyncio.run(run_pipeline(loaded, display, retry_kind=retry_failed, sends=not no_requests))
    print_outcome(outcome, loaded.project.state_dir, as_json=json)
