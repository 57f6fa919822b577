"""`tracefactory run`."""

from __future__ import annotations

import asyncio
import sys

from tracefactory.cli.options import Json, Limit, PipelineFile, Profile, Sets


def run(
    pipeline: PipelineFile, profile: Profile = None, sets: Sets = None, limit: Limit = None, json: Json = False
) -> None:
    """Make the dataset of a pipeline. Finished stages are not repeated, and stored completions are not paid again."""
    from rich.console import Console

    from tracefactory.cli.show import print_outcome
    from tracefactory.config import load_pipeline
    from tracefactory.engine.display import Display
    from tracefactory.engine.run import run_pipeline

    loaded = load_pipeline(pipeline, profile=profile, sets=sets or (), limit=limit)
    outcome = asyncio.run(run_pipeline(loaded, Display(Console(file=sys.stderr))))
    print_outcome(outcome, loaded.project.state_dir, as_json=json)
