"""`tracefactory show`."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer
from pydantic import BaseModel
from rich.console import Console

from tracefactory.cli.options import Json, ProjectFolder
from tracefactory.config.project import find_project
from tracefactory.core.errors import RunError
from tracefactory.core.prices import dollars
from tracefactory.core.rows import Kind
from tracefactory.core.spans import Span
from tracefactory.engine.reporting.report import FunnelLine, funnel, lengths, run_list, spending, with_notes
from tracefactory.engine.runs import End, RunOutcome, StageOutcome, load_outcome, runs_of

ENDED = {
    End.CAP: "the run was stopped by a cap",
    End.STOPPED: "the run was stopped",
    End.INTERRUPTED: "the run was interrupted",
    End.FAILED: "the run failed",
    End.RUNNING: "the run goes on; this is what its finished shards say",
    End.KILLED: "the run was killed; this is what its finished shards say",
}
SPENT = ("requests", "cost", "unpriced")
WIDTH = 80  # of a table that goes to a file or a pipe


def stdout_console() -> Console:
    """Return the console for results. It is as wide as the terminal, or `WIDTH` for a file or a pipe."""
    return Console(width=None if sys.stdout.isatty() else WIDTH)


def print_list(models: Iterable[BaseModel]) -> None:
    """Print models as a JSON list."""
    print("[" + ",\n".join(one.model_dump_json(indent=2) for one in models) + "]")


def show(
    run: Annotated[str | None, typer.Argument(help="The name of a run; the newest one by default.")] = None,
    every: Annotated[bool, typer.Option("--list", help="List all runs: how they ended and what they spent.")] = False,
    project: ProjectFolder = Path(),
    json: Json = False,
) -> None:
    """Print the funnel of a run, also of one that failed or goes on, and the lengths of its traces."""
    root = find_project(project).state_dir
    if not every:
        print_outcome(load_outcome(root, run, finished=False), root, as_json=json, console=stdout_console())
        return
    lines = runs_of(root)
    if json:
        print_list(lines)
    else:
        stdout_console().print(run_list(lines), highlight=False)


def print_outcome(outcome: RunOutcome, root: Path, *, as_json: bool, console: Console) -> None:
    """Print a run.

    Args:
        outcome: the run.
        root: the folder of the project's state.
        as_json: print JSON to stdout instead of tables.
        console: where tables are printed.
    """
    if as_json:
        print(outcome.model_dump_json(indent=2))
        return
    seconds = outcome.finished - outcome.started
    states = (
        "failed" if one.failed else "cached" if one.cached else "done" if one.done else "not done"
        for one in outcome.stages
    )
    lines = [FunnelLine(one.id, one.tally, one.paid, state) for one, state in zip(outcome.stages, states, strict=True)]
    notes = list(dict.fromkeys(note for one in outcome.stages for note in one.tally.notes))
    if outcome.state is End.FINISHED:
        paid, cost, unpriced = (
            sum(one.paid.get(name, 0) for one in outcome.stages) for name in ("requests", "cost", "unpriced")
        )
    else:  # shards that are not finished have paid, too
        notes.insert(0, f"{ENDED[outcome.state]}{': ' if outcome.reason else ''}{outcome.reason}")
        paid, cost, unpriced = (sum(getattr(one, name) for one in outcome.spend) for name in SPENT)
    spent = dollars(cost, unpriced, paid)
    notes.append(f"{paid:.0f} requests paid in this run, {spent} $; {seconds:.1f} s; run {outcome.run}")
    notes += [f"{one.unpriced:,} completions of {one.model} have no price" for one in outcome.spend if one.unpriced]
    console.print(with_notes(funnel(f"{outcome.pipeline} {outcome.version}", lines), notes), highlight=False)
    if outcome.spend:
        console.print(spending(outcome.spend), highlight=False)
    if outcome.state is End.FINISHED:
        releases = [one for one in outcome.stages if one.op.startswith("publish:")]
        for one in releases or outcome.stages[-1:]:
            if by_style := _lengths(one, root):
                console.print(lengths(by_style, one.id if len(releases) > 1 else ""), highlight=False)


def _lengths(stage: StageOutcome, root: Path) -> dict[str, list[int]]:
    """Return the completion tokens of the traces of a stage, by style; empty when its rows cannot be read."""
    try:
        frame = stage.rows(root).frame(Span.all(), ("style", "completion_tokens"))
    except RunError:
        return {}  # stored by an earlier version, or removed since
    if stage.gives is not Kind.TRACES:
        return {}
    grouped = frame.sort("style").group_by("style", maintain_order=True).agg("completion_tokens")
    return {style or "unstyled": tokens for style, tokens in grouped.iter_rows()}
