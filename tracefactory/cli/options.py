"""Arguments that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

PipelineFile = Annotated[Path, typer.Argument(help="A pipeline: one YAML file.", show_default=False)]
Profile = Annotated[str | None, typer.Option(help="Overlay one of the pipeline's profiles.")]
Sets = Annotated[
    list[str] | None,
    typer.Option(
        "--set", help="Change one value, e.g. stages.long.with.samples=8. May be repeated.", metavar="PATH=VALUE"
    ),
]
Limit = Annotated[int | None, typer.Option(min=1, help="Use only the first N problems of every source.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]
ProjectFolder = Annotated[Path, typer.Option("--project", help="A folder of the project.")]
