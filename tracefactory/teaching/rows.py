"""The rows of datasets that a student is trained on: read from releases, drawn at random, or under other questions."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from tracefactory.core.errors import Mistake, UserError, nearest
from tracefactory.core.fingerprint import digest
from tracefactory.publish.release import verify_release

VIEWS = ("sft", "messages", "chat")
"""The views that can be trained on, the preferred one first."""

Message = Mapping[str, Any]


@dataclass(frozen=True)
class TrainingRow:
    """One conversation: `before` are its messages up to the last one of the assistant, `last` is trained on."""

    id: str
    problem_id: str
    style: str
    before: tuple[Message, ...]
    last: Message

    @property
    def question(self) -> str:
        """What the user asks first."""
        return next((str(one["content"]) for one in self.before if one["role"] == "user"), "")


def read_rows(folder: Path, view: str = "", style: str = "") -> list[TrainingRow]:
    """Return the rows of a release, sorted by id.

    Args:
        folder: the folder of the release; the digests of its files are checked.
        view: one of `VIEWS`; empty for the first one that the release has.
        style: only rows of this style; empty for all.

    Raises:
        UserError: when it is no release, was changed, or has no such view or rows.
    """
    manifest = verify_release(folder)
    found = [name for name in VIEWS if name in manifest.configs]
    if view not in ("", *found):
        raise UserError(Mistake(f"{folder}: it has no view {view!r} to train on", hint=nearest(view, found) or None))
    if not found:
        has = ", ".join(manifest.configs)
        raise UserError(Mistake(f"{folder}: none of its views can be trained on ({has})", hint=f"publish with {VIEWS}"))
    files = sorted((folder / "data" / (view or found[0])).glob("*.parquet"))
    rows = [_row(one) for file in files for one in pq.read_table(file).to_pylist()]
    kept = [row for row in rows if style in ("", row.style)]
    if not kept:
        styles = sorted({row.style for row in rows})
        raise UserError(Mistake(f"{folder}: it has no row of style {style!r}", hint=f"it has: {', '.join(styles)}"))
    return sorted(kept, key=lambda row: row.id)


def read_measures(folder: Path) -> dict[str, dict[str, float]]:
    """Return the measures of the traces of a release by id, from its view `raw`; {} where it has none.

    Args:
        folder: the folder of a release.
    """
    found: dict[str, dict[str, float]] = {}
    for file in sorted((folder / "data" / "raw").glob("*.parquet")):
        if "measures" in pq.read_schema(file).names:
            for row in pq.read_table(file, columns=["id", "measures"]).to_pylist():
                found[row["id"]] = {name: value for name, value in row["measures"].items() if value is not None}
    return found


def drawn(rows: Iterable[TrainingRow], count: int, seed: int = 0) -> list[TrainingRow]:
    """Return `count` of the rows at random, all if there are fewer; the order of `rows` does not matter."""
    return sorted(rows, key=lambda row: digest(["drawn", seed, row.id]))[:count]


def shuffled(rows: Sequence[TrainingRow], seed: int = 0) -> list[TrainingRow]:
    """Return the rows with each target under the question of another problem, of the same style where that is possible.

    What a student gains from such rows is the form of the answers, not how they follow from the questions. Where one
    problem has more than half of the rows, the rest of its rows is left out.

    Raises:
        UserError: when all rows are about one problem.
    """
    if len(_counts(rows)) < 2:
        raise UserError("targets cannot be put under other questions: all rows are about one problem")
    by_style: dict[str, list[TrainingRow]] = defaultdict(list)
    for row in drawn(rows, len(rows), seed):
        by_style[row.style].append(row)
    groups = list(by_style.values())
    if any(2 * max(_counts(group).values()) > len(group) for group in groups):
        groups = [[row for group in groups for row in group]]
    return sorted((row for group in groups for row in _exchanged(group)), key=lambda row: row.id)


def _exchanged(rows: Sequence[TrainingRow]) -> list[TrainingRow]:
    """Move the targets of rows, sorted by problem, by as many places as the largest problem has rows."""
    ordered = sorted(rows, key=lambda row: row.problem_id)
    places = max(_counts(rows).values())
    others = ordered[places:] + ordered[:places]
    pairs = zip(ordered, others, strict=True)
    return [replace(row, last=other.last) for row, other in pairs if row.problem_id != other.problem_id]


def _counts(rows: Iterable[TrainingRow]) -> dict[str, int]:
    found: dict[str, int] = defaultdict(int)
    for row in rows:
        found[row.problem_id] += 1
    return found


def _row(columns: Mapping[str, Any]) -> TrainingRow:
    messages = [*columns["prompt"], *columns["completion"]] if "prompt" in columns else list(columns["messages"])
    *before, last = ({name: value for name, value in one.items() if value is not None} for one in messages)
    named = {name: str(columns[name]) for name in ("id", "problem_id", "style")}
    return TrainingRow(before=tuple(before), last=last, **named)
