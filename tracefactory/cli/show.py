"""`tracefactory show`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from tracefactory.cli.options import Json, ProjectFolder
from tracefactory.config.project import find_project
from tracefactory.core.errors import RunError
from tracefactory.core.prices import dollars
from tracefactory.core.rows import Kind
from tracefactory.core.spans import Span
from tracefactory.engine.report import FunnelLine, funnel, lengths, spending, with_notes
from tracefactory.engine.runs import RunOutcome, StageOutcome, load_outcome

WIDTH = 80  # of a table that goes to a file or a pipe


def stdout_console() -> Console:
    """Return the console for results. It is as wide as the terminal, or `WIDTH` for a file or a pipe."""
    return Console(width=None if sys.stdout.isatty() else WIDTH)


def show(
    run: Annotated[str | None, typer.Argument(help="The name of a run; the newest finished one by default.")] = None,
    project: ProjectFolder = Path(),
    json: Json = False,
) -> None:
    """Print the funnel of a finished run, with the lengths of its traces."""
    root = find_project(project).state_dir
    print_outcome(load_outcome(root, run), root, as_json=json)


def print_outcome(outcome: RunOutcome, root: Path, *, as_json: bool) -> None:
    """Print a finished run to stdout.

    Args:
        outcome: the run.
        root: the folder of the project's state.
        as_json: print JSON instead of tables.
    """
    if as_json:
        print(outcome.model_dump_json(indent=2))
        return
    console = stdout_console()
    seconds = outcome.finished - outcome.started
    lines = [FunnelLine(one.id, one.tally, one.paid, "cached" if one.cached else "done") for one in outcome.stages]
    notes = list(dict.fromkeys(note for one in outcome.stages for note in one.tally.notes))
    paid, cost, unpriced = (
        sum(one.paid.get(name, 0) for one in outcome.stages) for name in ("requests", "cost", "unpriced")
    )
    spent = dollars(cost, unpriced, paid)
    notes.append(f"{paid:.0f} requests paid in this run, {spent} $; {seconds:.1f} s; run {outcome.run}")
    notes += [f"{one.unpriced:,} completions of {one.model} have no price" for one in outcome.spend if one.unpriced]
    console.print(with_notes(funnel(f"{outcome.pipeline} {outcome.version}", lines), notes), highlight=False)
    if outcome.spend:
        console.print(spending(outcome.spend), highlight=False)
    if by_style := _lengths(outcome.stages[-1], root):
        console.print(lengths(by_style), highlight=False)


def _lengths(last: StageOutcome, root: Path) -> dict[str, list[int]]:
    """Return the completion tokens of the traces of a stage, by style; empty when its rows cannot be read."""
    try:
        frame = last.rows(root).frame(Span.all(), ("style", "completion_tokens"))
    except RunError:
        return {}  # stored by an earlier version, or removed since
    if last.gives is not Kind.TRACES:
        return {}
    grouped = frame.sort("style").group_by("style", maintain_order=True).agg("completion_tokens")
    return {style or "unstyled": tokens for style, tokens in grouped.iter_rows()}
