"""`tracefactory measures`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.table import Table

from tracefactory.cli.options import Json, ProjectFolder
from tracefactory.cli.show import print_list, stdout_console
from tracefactory.cli.student_text import quoted
from tracefactory.config.project import find_project
from tracefactory.core.errors import Mistake, UserError, nearest
from tracefactory.core.rows import Frozen, Trace
from tracefactory.engine.lineage import views_of
from tracefactory.engine.reporting.report import plain_table
from tracefactory.engine.runs import RunOutcome, load_outcome
from tracefactory.students.measures import dataset_rank_surprisal
from tracefactory.students.view import StudentView


class Spread(Frozen):
    """The distribution of one measure over the traces that have it."""

    measure: str
    traces: int
    min: float
    p10: float
    median: float
    p90: float
    max: float


class Fit(Frozen):
    """The measures of a run under one student. `rank_surprisal` is the measure of all its traces as one set."""

    student: str
    stage: str
    rank_surprisal: float
    spreads: tuple[Spread, ...]
    views: tuple[StudentView, ...]


def measures(
    run: Annotated[str | None, typer.Argument(help="The name of a run; the newest finished one by default.")] = None,
    student: Annotated[str | None, typer.Option(help="Show only this student.")] = None,
    traces: Annotated[int, typer.Option(min=0, help="Show the least likely tokens of this many traces.")] = 6,
    project: ProjectFolder = Path(),
    json: Json = False,
) -> None:
    """Print the measures of a run under its students, and the tokens least likely to them. No model is run."""
    root = find_project(project).state_dir
    fits = list(fits_of(load_outcome(root, run), root, traces))
    if student is not None:
        named = {fit.student: fit for fit in fits}
        if student not in named:
            hint = nearest(student, named) or "it has no `measure: student` stage"
            raise UserError(Mistake(f"--student: the run did not measure under {student!r}", hint=hint))
        fits = [named[student]]
    if json:
        print_list(fits)
        return
    console = stdout_console()
    for fit in fits:
        console.print(_table(fit), _tokens(fit), highlight=False)


def fits_of(outcome: RunOutcome, root: Path, shown: int) -> Iterator[Fit]:
    """Yield the measures of each `measure: student` stage of a run.

    Args:
        outcome: the run.
        root: the folder of the project's state.
        shown: the number of traces with a view of their tokens.
    """
    for stage in outcome.stages:
        if stage.op != "measure: student":
            continue
        rows = stage.rows(root)
        name = (rows.folder.identity() or {})["with"]["student"]
        found = [row for row in rows.rows() if isinstance(row, Trace)]
        if found:
            pairs = [
                (one.measures[f"{name}/mean_clipped_rank"], one.measures[f"{name}/mean_surprisal"]) for one in found
            ]
            views = [view for one in found[:shown] for view in views_of(one, outcome, root) if view.student == name]
            yield Fit(
                student=name,
                stage=stage.id,
                rank_surprisal=dataset_rank_surprisal(pairs),
                spreads=tuple(_spreads(found, name)),
                views=tuple(views),
            )


def _spreads(traces: Sequence[Trace], student: str) -> Iterator[Spread]:
    names = dict.fromkeys(name for trace in traces for name in trace.measures if name.startswith(f"{student}/"))
    for name in names:
        short = name.removeprefix(f"{student}/")
        values = np.array([trace.measures[name] for trace in traces if name in trace.measures])
        low, p10, middle, p90, high = (float(one) for one in np.quantile(values, [0, 0.1, 0.5, 0.9, 1]))
        yield Spread(measure=short, traces=len(values), min=low, p10=p10, median=middle, p90=p90, max=high)


def _table(fit: Fit) -> Table:
    title = f"under {fit.student} ({fit.stage}); rank-surprisal of the set {fit.rank_surprisal:.3f}"
    table = plain_table(title)
    table.add_column("measure")
    for name in ("traces", "min", "p10", "median", "p90", "max"):
        table.add_column(name, justify="right")
    for one in fit.spreads:
        numbers = (one.min, one.p10, one.median, one.p90, one.max)
        table.add_row(one.measure, str(one.traces), *(f"{number:.4g}" for number in numbers))
    return table


def _tokens(fit: Fit) -> Table:
    table = plain_table(f"least likely to {fit.student}")
    table.add_column("trace", no_wrap=True)
    for name in ("tokens", "surprisal", "rank-surprisal"):
        table.add_column(name, justify="right")
    table.add_column("token in context", overflow="fold")
    for name in ("p", "rank"):
        table.add_column(name, justify="right")
    table.add_column("student's likeliest token")
    for view in fit.views:
        head = [view.trace, f"{view.tokens:,}", f"{view.mean_surprisal:.3f}", f"{view.rank_surprisal:.3f}"]
        for one in view.least:
            likeliest = "" if one.instead is None else repr(one.instead)
            table.add_row(*head, quoted(view.text, one), f"{one.p:.2g}", f"{one.rank:,}", likeliest)
            head = [""] * 4
    return table
