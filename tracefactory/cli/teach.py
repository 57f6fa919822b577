"""`tracefactory teach`."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Annotated

import typer

from tracefactory.cli.options import Budget, Json, Profile, Sets, with_budget
from tracefactory.core.errors import Mistake, UserError


def teach(
    what: Annotated[
        list[str] | None,
        typer.Argument(help="A pipeline with a section `teach:`; or releases, as FOLDER, FOLDER:VIEW or ORG/REPO@TAG."),
    ] = None,
    student: Annotated[
        str | None, typer.Option(help="For releases: the student to train, such as packaged:smollm2-135m.")
    ] = None,
    tokens: Annotated[
        str, typer.Option(help="For releases: the budget of each in tokens in the loss, such as 2M.")
    ] = "20k",
    seeds: Annotated[int, typer.Option(min=1, help="For releases: how often each is trained on.")] = 3,
    questions: Annotated[
        str | None,
        typer.Option(
            "--eval",
            help="For releases: where the questions are from: reasoning_gym:TASK, a file, or ORG/REPO@REVISION.",
        ),
    ] = None,
    dry: Annotated[
        bool, typer.Option("--plan", help="Say what it would take, at rates measured here, and stop.")
    ] = False,
    correlate: Annotated[
        bool,
        typer.Option(
            "--correlate",
            help="Show how measures of datasets rank with what students learned, over all stored comparisons.",
        ),
    ] = False,
    profile: Profile = None,
    sets: Sets = None,
    budget: Budget = None,
    json: Json = False,
) -> None:
    """Train a student on each of several datasets, examine it, and say with intervals which taught it best.

    Trainings and answers are stored: the same command continues where it was stopped, and repeats nothing.
    """
    if correlate:
        _correlate(as_json=json)
        return
    if not what:
        raise UserError(Mistake("there is nothing to compare", hint="a pipeline with `teach:`, or folders of releases"))
    if len(what) == 1 and what[0].endswith((".yaml", ".yml")):
        if student is not None or questions is not None:
            raise UserError(Mistake(f"--student and --eval are for releases: {what[0]} names both"))
        file = Path(what[0])
    else:
        from tracefactory.teaching.releases import comparison_file

        file = comparison_file(what, student=student, tokens=tokens, seeds=seeds, questions=questions)
        print(f"the comparison is {file}", file=sys.stderr)
    _compare(file, profile, with_budget(sets, budget), dry=dry, as_json=json)


def _compare(file: Path, profile: str | None, sets: list[str], *, dry: bool, as_json: bool) -> None:
    from rich.console import Console

    from tracefactory.cli.run import interrupt
    from tracefactory.cli.show import stdout_console
    from tracefactory.config import load_pipeline
    from tracefactory.engine.process import settle
    from tracefactory.engine.reporting.display import Display
    from tracefactory.teaching.comparison import Comparison
    from tracefactory.teaching.planning import plan_of
    from tracefactory.teaching.report import tables
    from tracefactory.teaching.storing import store

    settle()
    signal.signal(signal.SIGTERM, interrupt)
    pipeline = load_pipeline(file, profile=profile, sets=sets)
    comparison = Comparison(
        pipeline, Display(Console(file=sys.stderr)), lambda text: print(text, file=sys.stderr, flush=True)
    )
    if dry:
        plan = plan_of(comparison)
        print(plan.model_dump_json(indent=2) if as_json else "\n".join(plan.lines(comparison.teach)))
        return
    result = comparison()
    told = store(result, pipeline)
    if as_json:
        print(result.model_dump_json(indent=2))
    else:
        stdout_console().print(tables(result), highlight=False)
    print(*told, sep="\n", file=sys.stderr)


def _correlate(*, as_json: bool) -> None:
    from tracefactory.cli.show import print_list, stdout_console
    from tracefactory.config.project import find_project
    from tracefactory.teaching.correlating import correlations, stored_results, table_of

    found = correlations(stored_results(find_project(Path()).out_dir))
    if as_json:
        print_list(found)
    else:
        stdout_console().print(table_of(found), highlight=False)
