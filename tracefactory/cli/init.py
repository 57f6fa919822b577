"""`tracefactory init`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tracefactory.config.project import init_project


def init(folder: Annotated[Path, typer.Argument(help="A new or empty folder.", show_default=False)]) -> None:
    """Make a project: pipelines, prompts and filters to start from."""
    for file in init_project(folder):
        print(folder / file)
