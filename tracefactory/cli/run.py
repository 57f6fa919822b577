"""`tracefactory run`."""

from __future__ import annotations

import asyncio
import sys
from typing import Annotated

import typer

from tracefactory.cli.options import Json, Limit, PipelineFile, Profile, Sets
from tracefactory.core.errors import Mistake, UserError, nearest


def run(
    pipeline: PipelineFile,
    profile: Profile = None,
    sets: Sets = None,
    limit: Limit = None,
    json: Json = False,
    retry_failed: Annotated[
        str | None,
        typer.Option(metavar="KIND", help="Try only the failed rows of one kind again, e.g. timeout or bad_request."),
    ] = None,
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

    loaded = load_pipeline(pipeline, profile=profile, sets=sets or (), limit=limit)
    if retry_failed is not None and retry_failed not in FAILURES:
        raise UserError(
            Mistake(f"--retry-failed: no kind of failure {retry_failed!r}", hint=nearest(retry_failed, FAILURES))
        )
    display = Display(Console(file=sys.stderr))
    outcome = asyncio.run(run_pipeline(loaded, display, retry_kind=retry_failed, sends=not no_requests))
    print_outcome(outcome, loaded.project.state_dir, as_json=json)
