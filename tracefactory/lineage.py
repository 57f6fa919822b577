"""The whole life of one row: every stage of a run that saw it, and what became of it there."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tracefactory.errors import UserError
from tracefactory.requests import RequestStore
from tracefactory.runs import RunOutcome, StageOutcome
from tracefactory.schema import Dropped, Frozen, Row


class Event(Frozen):
    """What one stage did with the row. `row` is the row as it left the stage, or as it was when it was dropped."""

    stage: str
    op: str
    fate: str  # "kept", "dropped" or "error"
    reason: str | None = None
    detail: str | None = None
    row: dict[str, Any]


class Life(Frozen):
    """A row's events in the order of the pipeline, and the paid request it came from, if it came from one."""

    id: str
    events: tuple[Event, ...]
    request: dict[str, Any] | None = None


def life_of(prefix: str, outcome: RunOutcome, root: Path) -> Life:
    """Find a row by its id, or by the beginning of it, in the stages of a run.

    Raises:
        UserError: when there is no such row, or several.
    """
    found: dict[str, list[Event]] = {}
    for stage in outcome.stages:
        for row_id, event in _events(stage, prefix, root):
            found.setdefault(row_id, []).append(event)
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
    return Life(id=row_id, events=tuple(events), request=None if record is None else dict(record))


def _events(stage: StageOutcome, prefix: str, root: Path) -> Iterator[tuple[str, Event]]:
    folder = stage.folder(root)
    record = folder.record()
    for index in range(record.shards if record else 0):
        assert record is not None
        for row in folder.read_shard(index, record.shards):
            if row.id.startswith(prefix):
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
