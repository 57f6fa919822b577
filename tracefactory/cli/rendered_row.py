"""Find the row that `tracefactory render` prints: of a published dataset, or of the newest run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from tracefactory.core.errors import Mistake, UserError, nearest
from tracefactory.core.pipeline import Project
from tracefactory.core.rows import Trace
from tracefactory.core.spans import Span
from tracefactory.engine.runs import load_outcome
from tracefactory.publish.release import MANIFEST, read_manifest
from tracefactory.publish.views import VIEWS, Group


@dataclass(frozen=True)
class ChosenRow:
    """One row of a view, the name of its dataset, and the folder of a published one."""

    dataset: str
    row: dict[str, Any]
    folder: Path | None = None


def find_row(name: str | None, view: str, row: str | None, project: Project | None) -> ChosenRow:
    """Return the row with an id, or the first one.

    Args:
        name: the name of a dataset in the project's out/, or a folder; None for the rows of the newest run.
        view: the view.
        row: the first characters of the row's id; None for the first row.
        project: the project; None outside of one.

    Raises:
        UserError: when there is no such dataset, view or row.
    """
    VIEWS.get(view)
    if name is None:
        return _of_run(view, row, project)
    folder = _folder(name, project)
    manifest = read_manifest(folder)
    files = sorted((folder / "data" / view).glob("*.parquet"))
    if not files:
        hint = f"it has: {', '.join(manifest.configs)}"
        raise UserError(Mistake(f"--view: {manifest.name} {manifest.version} has no view {view!r}", hint=hint))
    for file in files:
        for batch in pq.ParquetFile(file).iter_batches(64):
            for found in batch.to_pylist():
                if found["id"].startswith(row or ""):
                    return ChosenRow(manifest.name, found, folder)
    raise _no_row(row, f"the view {view} of {folder}")


def _of_run(view: str, row: str | None, project: Project | None) -> ChosenRow:
    if project is None:
        raise UserError(Mistake("there is no project here", hint="name the folder of a published dataset"))
    outcome = load_outcome(project.state_dir, None)
    for batch in outcome.stages[-1].rows(project.state_dir).batches(Span.all(), 64):
        groups: dict[str, list[Trace]] = {}
        for trace in batch.traces:
            groups.setdefault(trace.problem_id, []).append(trace)
        for of_problem in groups.values():
            for found in VIEWS.get(view).rows(Group(of_problem[0].problem, of_problem)).rows:
                if found["id"].startswith(row or ""):
                    return ChosenRow(outcome.pipeline, found)
    raise _no_row(row, f"the view {view} of the rows of run {outcome.run}")


def _folder(name: str, project: Project | None) -> Path:
    """Return the folder of a dataset; of a name, that of the version which was made last."""
    if (Path(name) / MANIFEST).is_file():
        return Path(name)
    out = Path(name) if project is None or Path(name).is_dir() else project.out_dir / name
    versions = [file.parent for file in out.glob(f"*/{MANIFEST}")]
    if not versions:
        names = [] if project is None else [file.parent.parent.name for file in project.out_dir.glob(f"*/*/{MANIFEST}")]
        raise UserError(Mistake(f"there is no published dataset {name!r}", hint=nearest(name, set(names))))
    return max(versions, key=lambda folder: read_manifest(folder).created)


def _no_row(row: str | None, where: str) -> UserError:
    what = "no row" if row is None else f"no row whose id begins with {row!r}"
    return UserError(f"{where} has {what}")
