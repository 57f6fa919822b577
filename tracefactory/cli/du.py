"""`tracefactory du`."""

from __future__ import annotations

from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Annotated

import typer

from tracefactory.cli.options import Json, ProjectFolder

if TYPE_CHECKING:
    from rich.table import Table

    from tracefactory.engine.garbage.usage import StageUsage, Usage


def du(
    largest: Annotated[int, typer.Option(min=0, help="How many of the largest stages to show.")] = 10,
    project: ProjectFolder = Path(),
    json: Json = False,
) -> None:
    """Show what the state and the releases take: files and bytes by kind, and the largest stages."""
    from tracefactory.cli.show import WIDTH, stdout_console
    from tracefactory.config.project import find_project
    from tracefactory.engine.garbage.usage import usage_of

    found = usage_of(find_project(project))
    if json:
        print(found.model_dump_json(indent=2))
        return
    console = stdout_console()
    console.print(_kinds(found), highlight=False)
    if found.stages and largest:
        console.print(_stages(found, largest), highlight=False)
    if any(not one.needed_by for one in found.stages) and not found.broken:
        print("• `tracefactory gc --plan` lists what nothing reaches")
    for one in found.broken:
        print(fill(f"• it is not known what else is reached: {one}", WIDTH, subsequent_indent="  "))


def _kinds(found: Usage) -> Table:
    from tracefactory.cli.gc import in_bytes
    from tracefactory.engine.reporting.report import plain_table

    table = plain_table("by kind")
    table.add_column("kind")
    table.add_column("folder")
    table.add_column("files", justify="right")
    table.add_column("size", justify="right")
    for one in found.kinds:
        table.add_row(one.kind, one.folder, f"{one.files:,}", in_bytes(one.bytes))
    files, size = sum(one.files for one in found.kinds), sum(one.bytes for one in found.kinds)
    table.add_row("all", "", f"{files:,}", in_bytes(size))
    return table


def _stages(found: Usage, largest: int) -> Table:
    from tracefactory.cli.gc import in_bytes
    from tracefactory.engine.reporting.report import plain_table

    table = plain_table(f"the largest of {len(found.stages):,} stages")
    table.add_column("stage", overflow="fold", max_width=30)
    table.add_column("files", justify="right", no_wrap=True)
    table.add_column("size", justify="right", no_wrap=True)
    table.add_column("reached from", overflow="fold")
    for one in found.stages[:largest]:
        table.add_row(one.name, f"{one.files:,}", in_bytes(one.bytes), _reached(one, known=not found.broken))
    return table


def _reached(stage: StageUsage, *, known: bool) -> str:
    if stage.needed_by:
        return stage.needed_by
    ran = f"; run by {', '.join(stage.pipelines)}" if stage.pipelines else ""
    return f"{'nothing' if known else 'not known'}{ran}"
