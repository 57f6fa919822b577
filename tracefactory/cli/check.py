"""`tracefactory check`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tracefactory.core.errors import UserError


def check(
    path: Annotated[Path, typer.Argument(help="A pipeline, or a folder of the project.")] = Path(),
) -> None:
    """Check one pipeline, or all pipelines, prompts, filters and plugins of a project, without sending requests.

    Of one pipeline, the chat templates of its students are tried on its prompts and views.
    """
    from tracefactory.config import check_project, load_pipeline
    from tracefactory.config.project import find_project, pipeline_files
    from tracefactory.core.stage import stage_of
    from tracefactory.engine.file_count import many_files
    from tracefactory.stages._templates import unread_templates

    if path.is_file():
        loaded = load_pipeline(path)
        found = [one for stage in loaded.stages for one in stage_of(stage).template_mistakes(stage, loaded)]
        if found:
            raise UserError(found)
        print(f"{path}: {len(loaded.stages)} stages, {len(loaded.models)} models, no mistakes")
        if many := many_files(loaded):
            print(f"note: {many}")
        if unread := unread_templates(loaded):
            print(
                f"note: the chat template of {', '.join(unread)} is not on this machine, so what becomes of the system "
                "message, the worked examples and the prefill of its prompts was not tried; the first answers of a run "
                "with `--limit 5` show it"
            )
        return
    project = find_project(path)
    if mistakes := check_project(project):
        raise UserError(mistakes)
    print(f"{project.root}: {len(pipeline_files(project))} pipelines, all prompts, filters and plugins: no mistakes")
