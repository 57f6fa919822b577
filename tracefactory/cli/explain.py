"""`tracefactory explain`."""

from __future__ import annotations

import datetime
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from textwrap import indent
from typing import Annotated, Any

import typer

from tracefactory.cli import student_text
from tracefactory.cli.options import Json, ProjectFolder
from tracefactory.config.project import find_project
from tracefactory.core.errors import Mistake, UserError, nearest
from tracefactory.core.rows import Trace
from tracefactory.decoding.decoder import Role
from tracefactory.decoding.provenance import Decoded
from tracefactory.engine.lineage import Event, Lineage, lineage_of
from tracefactory.engine.runs import load_outcome
from tracefactory.pruning import read_derivation
from tracefactory.students.view import StudentView


def explain(
    trace_id: Annotated[str, typer.Argument(help="The id of a row, or the beginning of it.", show_default=False)],
    run: Annotated[str | None, typer.Option(help="The name of a run; the newest finished one by default.")] = None,
    student: Annotated[str | None, typer.Option(help="Show it under just this student.")] = None,
    project: ProjectFolder = Path(),
    json: Json = False,
) -> None:
    """Tell a row's whole life: problem, request, verdict, what every stage did with it, how likely students find it."""
    root = find_project(project).state_dir
    lineage = lineage_of(trace_id, load_outcome(root, run), root)
    if student is not None:
        lineage = lineage.model_copy(update={"students": (_under(student, lineage),)})
    colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    print(lineage.model_dump_json(indent=2) if json else "\n".join(_told(lineage, colour)))


def _under(student: str, lineage: Lineage) -> StudentView:
    views = {view.student: view for view in lineage.students}
    if student not in views:
        hint = nearest(student, views) or "it was measured under none"
        raise UserError(Mistake(f"--student: row {lineage.id} was not measured under {student!r}", hint=hint))
    return views[student]


def _told(lineage: Lineage, colour: bool) -> Iterator[str]:
    last = lineage.events[-1].row
    yield f"row {lineage.id}"
    yield from _problem(last.get("problem", last))
    if lineage.request is not None:
        yield from _request(lineage.request)
    if "reasoning" in last:
        yield from _block("reasoning", last["reasoning"])
        yield from _block("answer", last["answer_text"])
    if lineage.diff is not None:
        yield from _block("pruned from its parent: - cut, + added", lineage.diff)
    for view in lineage.students:
        yield from student_text.told(view, colour=colour)
    for before in _line(lineage.parent):
        yield f"\nstages of {before.id}, the row it was made of"
        yield from _stages(before)
    yield "\nstages"
    yield from _stages(lineage)
    for child in lineage.children:
        yield f"  {child.stage} [{child.op}] made {child.id} of it"


def _line(lineage: Lineage | None) -> list[Lineage]:
    """Return the lives a row descends from, the oldest first."""
    return [] if lineage is None else [*_line(lineage.parent), lineage]


def _stages(lineage: Lineage) -> Iterator[str]:
    for event in lineage.events:
        reason = f": {event.reason}" if event.reason else ""
        detail = f" ({event.detail})" if event.detail else ""
        yield f"  {event.stage} [{event.op}] {event.fate}{reason}{detail}"
        if (why := _why_not_pruned(event)) is not None:
            yield f"      not pruned: {why}"
        if verdict := event.row.get("verdict") if event.op.startswith("verify") else None:
            yield (
                f"      {verdict['outcome']}: found {verdict['extracted']!r}, by {verdict['method']} "
                f"({verdict['verifier']} {verdict['version']})"
            )


def _why_not_pruned(event: Event) -> str | None:
    """Say why a prune stage left the row as it was."""
    if not event.op.startswith("prune"):
        return None
    derivation = read_derivation(Trace.model_validate(event.row))
    if derivation is None or derivation.fallback is None:
        return None
    return derivation.fallback + (f" ({derivation.detail})" if derivation.detail else "")


def _problem(problem: dict[str, Any]) -> Iterator[str]:
    licence = problem.get("licence") or "not recorded"
    yield f"\nproblem {problem['id']} from {problem.get('source') or 'unknown'} (licence: {licence})"
    yield indent(problem.get("question") or "", "  ")
    yield f"  gold: {problem.get('answer')}   verifier: {problem.get('verifier')}"


def _request(record: dict[str, Any]) -> Iterator[str]:
    request, completion = record["request"], record["completion"]
    when = datetime.datetime.fromtimestamp(completion["created"], datetime.UTC).isoformat(timespec="seconds")
    yield f"\nrequest, paid {when} by run {record['run']} for {record['cost']:.6f} $"
    yield f"  model {request['model_identity'].get('model')}, {request['params']}, sample {request['sample_index']}"
    for message in request["messages"]:
        yield f"  {message['role']}:"
        yield indent(message["content"], "    ")
    tokens = f"{completion['prompt_tokens']} + {completion['completion_tokens']} tokens"
    yield (
        f"  came: {completion['finish_reason']}, {tokens} in {completion['seconds']:.1f} s, "
        f"attempt {completion['attempts']}"
    )
    if "provenance" in completion:
        yield from _writers(Decoded.model_validate(completion))


def _writers(decoded: Decoded) -> Iterator[str]:
    """Show a text that two models wrote, with the student's part marked."""
    spans = decoded.provenance.spans(decoded.content)
    marked = "".join(text if role is Role.TEACHER else f"⟦{text}⟧" for role, text in spans)
    share = float(decoded.provenance.by_student.mean())
    yield from _block(f"as it was written, the student's {share:.1%} of the tokens in ⟦ ⟧", marked)


def _block(name: str, text: str) -> Iterator[str]:
    yield f"\n{name}"
    yield indent(text or "(none)", "  ")
