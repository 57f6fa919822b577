"""`tracefactory check`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tracefactory.core.errors import UserError


def check(
    path: Annotated[Path, typer.Argument(help="A pipeline, or a folder of the project.")] = Path(),
) -> None:
    """Check one pipeline, or all pipelines, prompts, filters and plugins of a project, without sending requests."""
    from tracefactory.config import check_project, load_pipeline
    from tracefactory.config.project import find_project, pipeline_files

    if path.is_file():
        loaded = load_pipeline(path)
        print(f"{path}: {len(loaded.stages)} stages, {len(loaded.models)} models, no mistakes")
        return
    project = find_project(path)
    if mistakes := check_project(project):
        raise UserError(mistakes)
    print(f"{project.root}: {len(pipeline_files(project))} pipelines, all prompts, filters and plugins: no mistakes")
