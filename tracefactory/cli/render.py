"""`tracefactory render`."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import typer

from tracefactory.cli.options import ProjectFolder
from tracefactory.cli.rendered_row import find_row
from tracefactory.cli.rendered_student import Trained, find_student
from tracefactory.cli.rendered_trainer import configuration, trainer_of
from tracefactory.config.project import find_optional_project
from tracefactory.publish.rendering import Training, check_row, check_training, trainings
from tracefactory.students.remedies import remedy
from tracefactory.text.chat_templates import RenderError
from tracefactory.text.turns import rendered_turn
from tracefactory.trainers import TRAINERS


def render(
    name: Annotated[
        str | None,
        typer.Argument(help="A published dataset: its name or its folder; by default the rows of the newest run."),
    ] = None,
    student: Annotated[
        str | None,
        typer.Option(
            help="A model of the pipeline, a folder, a GGUF file, packaged:NAME or a chat template (.jinja); by "
            "default the pipeline's student."
        ),
    ] = None,
    view: Annotated[
        str | None, typer.Option(help="The view; by default sft, or the first one that the trainer reads.")
    ] = None,
    row: Annotated[str | None, typer.Option(help="The id of a row, or its first characters.")] = None,
    trainer: Annotated[
        str | None, typer.Option(help=f"Print this trainer's configuration too: {', '.join(TRAINERS)}.")
    ] = None,
    project: ProjectFolder = Path(),
) -> None:
    """Print one row as the student is trained on it, and say what its chat template loses; exit status 1 if anything.

    What carries no loss is dim, or between [masked] and [/masked] where there are no colours.
    """
    found = find_optional_project(project)
    reader = None if trainer is None else trainer_of(trainer)
    view = view or ("sft" if reader is None else next(iter(reader.readings)))
    chosen = find_row(name, view, row, found)
    if reader is not None:
        print("\n".join(configuration(reader, view, chosen, student)))
    trained = find_student(student, chosen.dataset, found)
    colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    print(f"row {chosen.row['id']} of {chosen.dataset}, view {view}, as {trained.name} is trained on it")
    problems: list[RenderError] = []
    conversations = list(trainings(chosen.row))
    for one in conversations:
        problems += _print_one(one, trained, colour)
    if not conversations:
        print(f"no chat template renders the rows of the view {view} for training")
        return
    try:
        check_row(chosen.row, trained.renderer)
    except RenderError as error:
        problems.append(error)
    for problem in {one.reason: one for one in problems}.values():
        print(f"\nproblem: {problem} ({problem.reason})")
        print(f"  {remedy(trained.renderer.tokenizer, trained.form, problem.reason)}")
    if problems:
        raise typer.Exit(1)
    print("\nno problems: reasoning and answer are supervised, once, with one end")


def _print_one(one: Training, trained: Trained, colour: bool) -> list[RenderError]:
    """Print one conversation with its unsupervised parts marked, and return what is wrong with it."""
    template = trained.renderer.template
    try:
        turn = rendered_turn(template, one.before, one.last, one.tools)
        tokens = trained.renderer.tokens_of(turn)
    except RenderError as error:
        print(f"\n{one.what}, of which nothing can be supervised as it was meant")
        try:
            print(template.text([*one.before, one.last], generate=False, tools=one.tools))
        except RenderError as failed:
            return [failed]
        return [error]
    counts = f"{tokens.supervised:,} tokens supervised, {len(tokens) - tokens.supervised:,} masked"
    print(f"\n{one.what}: {counts}{trained.note}")
    cut = list(_cut(one, turn.text))
    print(marked(turn.text, [(0, turn.start), *cut, (turn.end, len(turn.text))], colour=colour))
    try:
        check_training(one, turn, trained.renderer)
    except RenderError as error:
        return [error]
    return []


def _cut(one: Training, text: str) -> Iterator[tuple[int, int]]:
    """Yield the ranges of a rendering that the view `masked` leaves without loss."""
    at = text.rfind(str(one.last["content"]).strip())
    for detail in one.details if at >= 0 else ():
        if not detail["train"]:
            yield at + detail["begin_offset"], at + detail["end_offset"] + 1


def marked(text: str, masked: Sequence[tuple[int, int]], *, colour: bool) -> str:
    """Return a text with its masked ranges dim, or between [masked] and [/masked] where there are no colours."""
    pieces, done = [], 0
    for start, end in masked:
        piece = text[start:end]
        if piece:
            shown = typer.style(piece, dim=True) if colour else f"[masked]{piece}[/masked]"
            pieces += [text[done:start], shown]
            done = end
    return "".join([*pieces, text[done:]])
