"""`tracefactory show`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from tracefactory.cli.options import Json, ProjectFolder
from tracefactory.config.project import find_project
from tracefactory.core.schema import Trace
from tracefactory.engine.report import FunnelLine, funnel, lengths, with_notes
from tracefactory.engine.runs import RunOutcome, StageOutcome, load_outcome

WIDTH = 160  # of a table that goes to a file or a pipe


def stdout_console() -> Console:
    """Return the console that results are printed on: as wide as the terminal, `WIDTH` for a file or a pipe."""
    return Console(width=None if sys.stdout.isatty() else WIDTH)


def show(
    run: Annotated[str | None, typer.Argument(help="The name of a run; the newest finished one by default.")] = None,
    project: ProjectFolder = Path(),
    json: Json = False,
) -> None:
    """Print the funnel of a finished run, with the lengths of what it made."""
    root = find_project(project).state_dir
    print_outcome(load_outcome(root, run), root, as_json=json)


def print_outcome(outcome: RunOutcome, root: Path, *, as_json: bool) -> None:
    """Print a finished run to stdout."""
    if as_json:
        print(outcome.model_dump_json(indent=2))
        return
    console = stdout_console()
    seconds = outcome.finished - outcome.started
    lines = [
        FunnelLine(one.id, one.op, one.tally, one.paid, "cached" if one.cached else "done") for one in outcome.stages
    ]
    notes = list(dict.fromkeys(note for one in outcome.stages for note in one.tally.notes))
    paid = sum(one.paid.get("requests", 0) for one in outcome.stages)
    cost = sum(one.paid.get("cost", 0) for one in outcome.stages)
    notes.append(f"{paid:.0f} requests paid in this run, {cost:.4f} $; {seconds:.1f} s; run {outcome.run}")
    console.print(with_notes(funnel(f"{outcome.pipeline} {outcome.version}", lines), notes), highlight=False)
    if traces := _traces(outcome.stages[-1], root):
        console.print(lengths(traces), highlight=False)


def _traces(last: StageOutcome, root: Path) -> list[Trace]:
    return [row for row in last.folder(root).read_all() if isinstance(row, Trace)]
