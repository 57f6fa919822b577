"""The lineage of one row: the stages of a run that processed it, and their decisions."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl

from tracefactory.core.errors import UserError
from tracefactory.core.model import RequestFailed
from tracefactory.core.rows import Frozen, Kind, ParentRole, Row, Trace
from tracefactory.core.spans import Span
from tracefactory.core.stage import Answer
from tracefactory.core.tables import DECISION_COLUMNS, problems_from, traces_from
from tracefactory.engine.runs import RunOutcome, StageOutcome
from tracefactory.engine.stored import usable
from tracefactory.pruning import diff, restored
from tracefactory.store.requests import RequestStore
from tracefactory.store.rows import StageRows
from tracefactory.store.scores import ScoreStore
from tracefactory.students.over import Over, of_text
from tracefactory.students.view import StudentView, view_of


class Event(Frozen):
    """The result of one stage for the row: `fate` is kept, dropped, replaced or failed; `row` is the output row."""

    stage: str
    op: str
    fate: str
    reason: str | None = None
    detail: str | None = None
    row: dict[str, Any]


class Child(Frozen):
    """A row that a stage made from this row."""

    id: str
    stage: str
    op: str


class Lineage(Frozen):
    """A row's events in the order of the pipeline, and the paid request it was made from, if there is one.

    `unreadable` says why the stored record of that request cannot be shown, and what shows it as it is stored.
    `parent` is the lineage of the row it was made from, `diff` a readable diff of both; `children` are the rows made
    from this row. `students` are views of the row under the students that measured it in this run.
    """

    id: str
    events: tuple[Event, ...]
    request: dict[str, Any] | None = None
    unreadable: str = ""
    parent: Lineage | None = None
    diff: str | None = None
    children: tuple[Child, ...] = ()
    students: tuple[StudentView, ...] = ()


def lineage_of(prefix: str, outcome: RunOutcome, root: Path) -> Lineage:
    """Find a row by its id, or a prefix of it, in the stages of a run.

    Raises:
        UserError: when there is no such row, or more than one.
    """
    found: dict[str, list[tuple[Event, Row]]] = {}
    children: list[Child] = []
    for stage in outcome.stages:
        rows = stage.rows(root)
        for event, row in _events(stage, rows, prefix):
            found.setdefault(row.id, []).append((event, row))
        children += _children(stage, rows, prefix)
    if not found:
        raise UserError(f"no row of run {outcome.run} has an id that begins with {prefix!r}")
    if len(found) > 1:
        some = ", ".join(sorted(found)[:5])
        raise UserError(
            f"{len(found)} rows of run {outcome.run} have ids that begin with {prefix!r}: {some} ...; give more digits"
        )
    ((row_id, seen),) = found.items()
    first, last = seen[0][1], seen[-1][1]
    key = first.request_key if isinstance(first, Trace) else ""
    record = stored_under(key, root) if key else None
    parent_id = first.parents[0].id if isinstance(first, Trace) and first.parents else None
    return Lineage(
        id=row_id,
        events=tuple(event for event, _ in seen),
        request=None if record is None or isinstance(record, RequestFailed) else dict(record),
        unreadable=record.message if isinstance(record, RequestFailed) else "",
        parent=lineage_of(parent_id, outcome, root) if parent_id else None,
        diff=_diff(last),
        children=tuple(children),
        students=tuple(views_of(last, outcome, root)) if isinstance(last, Trace) else (),
    )


def stored_under(key: str, root: Path) -> Answer | None:
    """Return the stored record of a request by its key, or why it cannot be read; None when there is none."""
    records = RequestStore(root).get([key])
    return usable(key, records[key]) if key in records else None


def views_of(trace: Trace, outcome: RunOutcome, root: Path) -> Iterator[StudentView]:
    """Yield the views of a trace under the students of a run, from the score store."""
    body = trace.reasoning or trace.answer_text
    for stage in outcome.stages:
        identity = stage.rows(root).folder.identity() if stage.op == "measure: student" else None
        if identity is None or "scores" not in identity["uses"]:  # identities of older versions do not name the scores
            continue
        stored = ScoreStore(root, identity["uses"]["scores"]).get([trace.id], words=True).get(trace.id, [])
        fitting = [one for one in stored if one.text is None or body.strip() in one.text]
        if fitting:
            scores, over = fitting[-1], None
            if scores.text is not None and identity["parameters"].get("over") == Over.TEXT:
                over = of_text(scores, scores.text, trace.reasoning, trace.answer_text)
            yield view_of(trace.id, identity["with"]["student"], scores, body, over=over)


def _events(stage: StageOutcome, rows: StageRows, prefix: str) -> Iterator[tuple[Event, Row]]:
    """Yield the events of a stage for the rows whose id begins with `prefix`."""
    frame = rows.judged(Span.all(), frozenset(DECISION_COLUMNS)).filter(pl.col("id").str.starts_with(prefix))
    for problem_id, row_id, kept, failed, reason, detail in frame.select(
        "problem_id", "id", "kept", "failed", "reason", "detail"
    ).iter_rows():
        row = _row(rows, problem_id, row_id)
        fate = "kept" if kept else "failed" if failed else "replaced" if reason == "replaced" else "dropped"
        reason, detail = (None, detail) if fate == "replaced" else (reason, detail)
        shown = row.model_dump(mode="json")
        yield Event(stage=stage.id, op=stage.op, fate=fate, reason=reason, detail=detail, row=shown), row


def _row(rows: StageRows, problem_id: str, row_id: str) -> Row:
    span = Span(problem_id, problem_id)
    frame = rows.judged(span).filter(pl.col("id") == row_id)
    if rows.gives is Kind.PROBLEMS:
        return problems_from(frame.drop(DECISION_COLUMNS, strict=False))[0]
    problems = {one.id: one for one in problems_from(rows.problems(span))}
    return traces_from(frame, problems)[0]


def _children(stage: StageOutcome, rows: StageRows, prefix: str) -> Iterator[Child]:
    """Yield the traces that a stage made from a trace whose id begins with `prefix`."""
    if rows.makes is not Kind.TRACES:
        return
    frame = rows.frame(Span.all(), ("parents", "stage")).filter(pl.col("stage") == stage.id)
    for row_id, parents in frame.select("id", "parents").iter_rows():
        if any(one["id"].startswith(prefix) for one in parents or ()):
            yield Child(id=row_id, stage=stage.id, op=stage.op)


def _diff(row: Row) -> str | None:
    """Return the diff of a pruned row and its parent, None for other rows."""
    if not isinstance(row, Trace) or row.parent(ParentRole.PRUNED) is None:
        return None
    found = restored(row)
    return None if found is None else diff(*found)
