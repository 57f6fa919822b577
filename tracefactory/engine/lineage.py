"""The whole life of one row: every stage of a run that saw it, and what became of it there."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tracefactory.core.errors import UserError
from tracefactory.core.schema import Dropped, Frozen, Row, Trace
from tracefactory.engine.runs import RunOutcome, StageOutcome
from tracefactory.pruning import diff, restored
from tracefactory.store.requests import RequestStore
from tracefactory.store.scores import ScoreStore
from tracefactory.students.view import StudentView, view_of


class Event(Frozen):
    """What one stage did with the row. `row` is the row as it left the stage, or as it was when it was dropped."""

    stage: str
    op: str
    fate: str  # "kept", "dropped" or "error"
    reason: str | None = None
    detail: str | None = None
    row: dict[str, Any]


class Child(Frozen):
    """A row that a stage made of another one."""

    id: str
    stage: str
    op: str


class Life(Frozen):
    """A row's events in the order of the pipeline, and the paid request it came from, if it came from one.

    `parent` is the life of the row it was made of, `diff` what was changed, for a person to read; `children` are the
    rows that were made of it. `students` is the row as each student saw it that a stage of the run measured it under.
    """

    id: str
    events: tuple[Event, ...]
    request: dict[str, Any] | None = None
    parent: Life | None = None
    diff: str | None = None
    children: tuple[Child, ...] = ()
    students: tuple[StudentView, ...] = ()


def life_of(prefix: str, outcome: RunOutcome, root: Path) -> Life:
    """Find a row by its id, or by the beginning of it, in the stages of a run.

    Raises:
        UserError: when there is no such row, or several.
    """
    found: dict[str, list[Event]] = {}
    children: list[Child] = []
    for stage in outcome.stages:
        for row_id, event in _events(stage, prefix, root):
            if row_id.startswith(prefix):
                found.setdefault(row_id, []).append(event)
            if event.fate == "kept" and _made_here(event) and event.row["parent_id"].startswith(prefix):
                children.append(Child(id=row_id, stage=event.stage, op=event.op))
    if not found:
        raise UserError(f"no row of run {outcome.run} has an id that begins with {prefix!r}")
    if len(found) > 1:
        some = ", ".join(sorted(found)[:5])
        raise UserError(
            f"{len(found)} rows of run {outcome.run} begin with {prefix!r}: {some} ...; give more of the id"
        )
    ((row_id, events),) = found.items()
    key = next((event.row["request_key"] for event in events if event.row.get("request_key")), None)
    record = RequestStore(root).get([key]).get(key) if key else None
    parent_id = events[0].row.get("parent_id")
    return Life(
        id=row_id,
        events=tuple(events),
        request=None if record is None else dict(record),
        parent=life_of(parent_id, outcome, root) if parent_id else None,
        diff=_diff(events[0].row) if parent_id else None,
        children=tuple(children),
        students=tuple(_views(events[-1].row, outcome, root)),
    )


def _views(row: dict[str, Any], outcome: RunOutcome, root: Path) -> Iterator[StudentView]:
    if "reasoning" in row:
        yield from views_of(Trace.model_validate(row), outcome, root)


def views_of(trace: Trace, outcome: RunOutcome, root: Path) -> Iterator[StudentView]:
    """Yield what the students of a run said of a trace, from the score store."""
    body = trace.reasoning or trace.answer_text
    for stage in outcome.stages:
        identity = stage.folder(root).identity() if stage.op == "measure: student" else None
        if identity is None or "scores" not in identity["uses"]:  # a stage measured before its scores were named
            continue
        stored = ScoreStore(root, identity["uses"]["scores"]).get([trace.id], words=True).get(trace.id, [])
        fitting = [one for one in stored if one.text is None or body.strip() in one.text]
        if fitting:
            yield view_of(trace.id, identity["with"]["student"], fitting[-1], body)


def _made_here(event: Event) -> bool:
    """Tell whether the row is another than its parent because of this very stage."""
    return bool(event.row.get("parent_id")) and event.row["stage"] == event.stage


def _diff(row: dict[str, Any]) -> str | None:
    found = restored(Trace.model_validate(row))
    return None if found is None else diff(*found)


def _events(stage: StageOutcome, prefix: str, root: Path) -> Iterator[tuple[str, Event]]:
    """Yield the events of the rows whose id, or whose parent's id, begins with `prefix`."""
    folder = stage.folder(root)
    for row in folder.read_all():
        if row.id.startswith(prefix) or (isinstance(row, Trace) and (row.parent_id or "").startswith(prefix)):
            yield row.id, _kept(stage, row)
    for dropped in folder.read_dropped():
        if dropped.id.startswith(prefix):
            yield dropped.id, _dropped(stage, dropped)


def _kept(stage: StageOutcome, row: Row) -> Event:
    return Event(stage=stage.id, op=stage.op, fate="kept", row=row.model_dump(mode="json"))


def _dropped(stage: StageOutcome, dropped: Dropped) -> Event:
    return Event(
        stage=stage.id,
        op=stage.op,
        fate="error" if dropped.error else "dropped",
        reason=dropped.reason,
        detail=dropped.detail,
        row=json.loads(dropped.row),
    )
