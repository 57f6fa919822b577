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
from tracefactory.cli.stored_record import find_record, record_text
from tracefactory.config.project import find_project
from tracefactory.core.errors import Mistake, UserError, nearest
from tracefactory.core.prices import Price, cost_of
from tracefactory.core.rows import Trace
from tracefactory.decoding.decoder import Role
from tracefactory.decoding.provenance import Decoded
from tracefactory.engine.lineage import Lineage, lineage_of
from tracefactory.engine.runs import load_outcome
from tracefactory.pruning import read_derivation


def explain(
    trace_id: Annotated[
        str,
        typer.Argument(
            help="The id of a row, or its first characters; or the key of a request, or its first 12 digits or more, "
            "of which the stored record is printed.",
            show_default=False,
        ),
    ],
    run: Annotated[str | None, typer.Option(help="The name of a run; the newest finished one by default.")] = None,
    student: Annotated[str | None, typer.Option(help="Show only the scores of this student.")] = None,
    project: ProjectFolder = Path(),
    json: Json = False,
) -> None:
    """Show where a row comes from: problem, request, verdict, the decision of every stage, and the students' scores."""
    root = find_project(project).state_dir
    try:
        lineage = lineage_of(trace_id, load_outcome(root, run), root)
    except UserError:
        if (found := find_record(trace_id, root)) is None:
            raise
        print(record_text(*found, whole=json))
        return
    if student is not None:
        views = {view.student: view for view in lineage.students}
        if student not in views:
            hint = nearest(student, views) or "no student measured it"
            raise UserError(Mistake(f"--student: row {lineage.id} was not measured under {student!r}", hint=hint))
        lineage = lineage.model_copy(update={"students": (views[student],)})
    colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    print(lineage.model_dump_json(indent=2) if json else "\n".join(_lines(lineage, colour)))


def _lines(lineage: Lineage, colour: bool) -> Iterator[str]:
    last = lineage.events[-1].row
    yield f"row {lineage.id}"
    problem = last.get("problem", last)
    licence = problem.get("licence") or "not recorded"
    yield f"\nproblem {problem['id']} from {problem.get('source') or 'unknown'} (licence: {licence})"
    yield indent(problem.get("question") or "", "  ")
    yield f"  gold: {problem.get('answer')}   verifier: {problem.get('verifier')}"
    if lineage.request is not None:
        yield from _request(lineage.request)
    if lineage.unreadable:
        yield f"\n{lineage.unreadable}"
    if "reasoning" in last:
        yield from _block("reasoning", last["reasoning"])
        yield from _block("answer", last["answer_text"])
    if lineage.diff is not None:
        yield from _block("pruned from its parent: - cut, + added", lineage.diff)
    for view in lineage.students:
        yield from student_text.view_lines(view, colour=colour)
    ancestors: list[Lineage] = []
    while (parent := (ancestors[0] if ancestors else lineage).parent) is not None:
        ancestors.insert(0, parent)
    for before in ancestors:
        yield f"\nstages of {before.id}, from which this row was made"
        yield from _stages(before)
    yield "\nstages"
    yield from _stages(lineage)
    for child in lineage.children:
        yield f"  {child.stage} [{child.op}] made {child.id} from this row"


def _stages(lineage: Lineage) -> Iterator[str]:
    for event in lineage.events:
        reason = f": {event.reason}" if event.reason else ""
        detail = f" ({event.detail})" if event.detail else ""
        yield f"  {event.stage} [{event.op}] {event.fate}{reason}{detail}"
        derivation = read_derivation(Trace.model_validate(event.row)) if event.op.startswith("prune") else None
        if derivation is not None and derivation.fallback is not None:
            more = f" ({derivation.detail})" if derivation.detail else ""
            yield f"      not pruned: {derivation.fallback}{more}"
        if verdict := event.row.get("verdict") if event.op.startswith("verify") else None:
            yield (
                f"      {verdict['outcome']}: found {verdict['extracted']!r}, by {verdict['method']} "
                f"({verdict['verifier']} {verdict['version']})"
            )


def _request(record: dict[str, Any]) -> Iterator[str]:
    request, completion = record["request"], record["completion"]
    when = datetime.datetime.fromtimestamp(completion["created"], datetime.UTC).isoformat(timespec="seconds")
    cost, price = cost_of(record), record.get("price")
    paid = "at an unknown price" if cost is None else f"for {cost:.6f} $"
    by = f" ({Price.model_validate(price).label()})" if price is not None else ""
    yield f"\nrequest, paid {when} by run {record['run']} {paid}{by}"
    identity, params, sample = request["model_identity"], request.get("params"), request.get("sample_index")
    yield f"  model {identity.get('model')}, {params}, sample {sample}"
    for message in request.get("messages") or ():
        yield f"  {message.get('role')}:"
        yield indent(str(message.get("content")), "    ")
    tokens = f"{completion['prompt_tokens']} + {completion['completion_tokens']} tokens"
    yield (
        f"  completion: {completion['finish_reason']}, {tokens} in {completion['seconds']:.1f} s, "
        f"attempt {completion['attempts']}"
    )
    if "provenance" in completion:
        decoded = Decoded.model_validate(completion)  # teacher and student wrote the text in turns
        spans = decoded.provenance.spans(decoded.content)
        marked = "".join(text if role is Role.TEACHER else f"⟦{text}⟧" for role, text in spans)
        share = float(decoded.provenance.by_student.mean())
        yield from _block(f"the text with the student's tokens ({share:.1%}) in ⟦ ⟧", marked)


def _block(name: str, text: str) -> Iterator[str]:
    yield f"\n{name}"
    yield indent(text or "(none)", "  ")
