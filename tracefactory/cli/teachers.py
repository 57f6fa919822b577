"""`tracefactory teachers`."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from tracefactory.cli.options import Budget, Json, PipelineFile, Profile, Sets, with_budget
from tracefactory.cli.show import stdout_console
from tracefactory.config import load_pipeline
from tracefactory.core.rows import Frozen, Trace
from tracefactory.engine.costs import total
from tracefactory.engine.plan import Plan, make_plan
from tracefactory.engine.reporting.display import Display
from tracefactory.engine.reporting.report import plain_table, with_notes
from tracefactory.engine.run import run_pipeline
from tracefactory.engine.runs import RunOutcome
from tracefactory.engine.spending import prices_of
from tracefactory.engine.trial import CHECKED, MEASURED, Trial, trial_of
from tracefactory.students.ranking import LOCAL_WINDOW, RankBy, TeacherRow, TeacherTrial, rank_teachers, remarks


class Ranking(Frozen):
    """The result, which `--json` prints: the teachers, best first, with remarks on how to read the numbers."""

    student: str
    model: str
    by: str
    of: str
    run: str
    problems: int
    teachers: tuple[TeacherRow, ...]
    remarks: tuple[str, ...]


def teachers(
    pipeline: PipelineFile,
    samples: Annotated[int, typer.Option(min=1, help="Problems to try, with one sample per teacher.")] = 200,
    student: Annotated[
        str | None, typer.Option(help="A `use: transformers` model; by default the measured one.")
    ] = None,
    teacher: Annotated[list[str] | None, typer.Option(help="Try only this model. May be repeated.")] = None,
    by: Annotated[RankBy, typer.Option(help="What to rank by.")] = RankBy.RANK_SURPRISAL,
    every: Annotated[bool, typer.Option("--all", help="Rank by all traces, not only by correct ones.")] = False,
    dry: Annotated[bool, typer.Option("--plan", help="Print the cost and stop.")] = False,
    profile: Profile = None,
    sets: Sets = None,
    budget: Budget = None,
    json: Json = False,
) -> None:
    """Try every teacher on the first problems and rank them for the student, with intervals, tokens and cost.

    Stored samples and scores of runs are used, and runs do not pay again for what is sampled here.
    """
    loaded = load_pipeline(pipeline, profile=profile, sets=with_budget(sets, budget))
    window = LOCAL_WINDOW if by is RankBy.LOCAL_NATURALNESS else None
    trial = trial_of(loaded, samples, student=student, teachers=teacher or (), window=window)
    root = trial.pipeline.project.state_dir
    print(_price(trial, make_plan(trial.pipeline, root)), file=sys.stderr)
    if dry:
        return
    outcome = asyncio.run(run_pipeline(trial.pipeline, Display(Console(file=sys.stderr))))
    ranking = _ranking(trial, outcome, root, by, every)
    if json:
        print(ranking.model_dump_json(indent=2))
    else:
        stdout_console().print(with_notes(_table(ranking), ranking.remarks), highlight=False)


def _price(trial: Trial, plan: Plan) -> str:
    """Return a sentence with the requests, tokens and cost that a trial has to pay."""
    count = len(trial.candidates)
    problems = trial.pipeline.limit or 0
    head = f"{count} teachers, 1 sample each of the first {problems:,} problems, under {trial.student!r}"
    judge = "; the judge's votes are not included, since their number is not known yet" if trial.judged else ""
    tried = {one.stage.id for one in trial.candidates}
    planned = [stage for stage in plan.stages if stage.id in tried]
    if any(stage.unknown for stage in planned):
        most = f"at most {count * problems:,} requests to pay, since the problems have not been read yet"
        return f"{head}: {most}{judge}"
    pays = [stage.to_pay for stage in planned if stage.to_pay is not None]
    tokens, cost = sum(pay.tokens_at_most for pay in pays), total(pay.cost_at_most for pay in pays)
    price = "at an unknown cost" if cost is None else f"at most {cost:.4f} $"
    return f"{head}: {plan.requests:,} requests to pay, at most {tokens:,} tokens, {price}{judge}"


def _ranking(trial: Trial, outcome: RunOutcome, root: Path, by: RankBy, every: bool) -> Ranking:
    stages = {stage.id: stage for stage in outcome.stages}
    verified, measured = (
        [row for row in stages[stage_id].rows(root).rows() if isinstance(row, Trace)]
        for stage_id in (CHECKED, MEASURED)
    )
    models, prices = trial.pipeline.models, prices_of(trial.pipeline)
    tried = [
        TeacherTrial(
            teacher=one.model,
            model=models[one.model].model,
            stage=one.stage.id,
            prompt=str(getattr(one.stage.params, "prompt", "")),
            priced=prices[one.model].input is not None,
            samples=stages[one.stage.id].tally.rows_in,
            failed=stages[one.stage.id].tally.errors,
            verified=[trace for trace in verified if trace.stage == one.stage.id],
            measured=[trace for trace in measured if trace.stage == one.stage.id],
        )
        for one in trial.candidates
    ]
    rows = rank_teachers(tried, trial.student, by, every=every)
    return Ranking(
        student=trial.student,
        model=models[trial.student].model,
        by=by.value,
        of="all traces" if every else "correct traces",
        run=outcome.run,
        problems=len({trace.problem_id for trace in verified}),
        teachers=tuple(rows),
        remarks=tuple(remarks(rows, by, every=every)),
    )


def _table(ranking: Ranking) -> Table:
    """Return the ranking; at 80 columns only the names of stages and teachers are folded."""
    title = f"teachers for {ranking.student} ({ranking.model}): {ranking.of} on {ranking.problems} problems"
    table = plain_table(title)
    table.add_column("")
    table.add_column("stage\nteacher", overflow="fold")
    for name in (
        f"{ranking.by.replace('_', chr(10))}\n(95%)",
        "first",
        "used",
        "passed\n(95%)",
        "tokens\nmedian\nall",
        "$ per\ncorrect",
    ):
        table.add_column(name, justify="right", no_wrap=True)
    for place, row in enumerate(ranking.teachers, start=1):
        lost = {"failed": row.failed, "refused": row.refused, "unmeasured": row.unmeasured}
        without = ", ".join(f"{name} {count}" for name, count in lost.items() if count)
        value = "-" if row.value is None else f"{row.value:.3f}"
        interval = "" if row.low is None or row.high is None else f"\n{row.low:.3f}-{row.high:.3f}"
        median = "-" if row.median_tokens is None else f"{row.median_tokens:g}"
        table.add_row(
            "-" if row.value is None else str(place),
            f"{row.stage}\n{row.teacher}" + (f"\n{without}" if without else ""),
            value + interval,
            "-" if row.value is None else f"{row.first:.0%}",
            f"{row.used}/{row.samples}",
            f"{row.passed.rate:.0%}\n{row.passed.low:.0%}-{row.passed.high:.0%}",
            f"{median}\n{row.total_tokens:,}",
            "-" if row.cost_per_usable is None else f"{row.cost_per_usable:.6f}",
        )
    return table
