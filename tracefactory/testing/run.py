"""Run one stage on given rows, in a temporary project."""

from __future__ import annotations

import os
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tracefactory.config import load_pipeline
from tracefactory.config.project import FOLDERS, starter_dir
from tracefactory.core import plugins
from tracefactory.core.decisions import Decision, Judgement
from tracefactory.core.errors import Mistake, UserError, nearest
from tracefactory.core.registry import kinds, registry
from tracefactory.core.rows import Problem, Row, Trace, Verdict
from tracefactory.core.spans import Span
from tracefactory.core.tables import PLAIN_COLUMNS, Table
from tracefactory.engine.executors.base import Executor
from tracefactory.engine.flow import Flow
from tracefactory.engine.run import run_pipeline
from tracefactory.engine.runs import StageOutcome
from tracefactory.filters import load_filters
from tracefactory.testing.given import PLUGIN, GivenProblems, GivenTraces

_GIVEN = "given"
_LEFT_OUT = frozenset({"pipelines", "stages", "tests", "out"})


@dataclass(frozen=True)
class StageRun:
    """The result of a stage.

    Attributes:
        rows: the rows that it passes on, with all columns, sorted by problem and id.
        made: those of `rows` that it made itself.
        judgements: its decision on every row that it was given or made, with the columns that it adds, by row id.
        numbers: its counts: requests, outcomes, steps and others.
        notes: its messages.
        folder: the temporary project; removed by now unless it was an argument of `run_stage`.
    """

    rows: Sequence[Row]
    made: Sequence[Row]
    judgements: Mapping[str, Judgement]
    numbers: Mapping[str, float]
    notes: Sequence[str]
    folder: Path

    @property
    def kept(self) -> frozenset[str]:
        """The ids of the rows that are passed on."""
        return frozenset(row.id for row in self.rows)

    def reason(self, row: Row) -> str | None:
        """Return why a row was not passed on; None for one that was."""
        return self.judgements[row.id].decision.reason


async def run_stage(
    stage: Mapping[str, Any],
    rows: Sequence[Problem] | Sequence[Trace] = (),
    *,
    models: Mapping[str, Mapping[str, Any]] | None = None,
    project: Path | None = None,
    folder: Path | None = None,
) -> StageRun:
    """Run one stage in this process, by the inline executor.

    Args:
        stage: the stage as in a pipeline file: `{"prune": "shorter", "with": {"check": "answer"}}`.
        rows: its input, problems or traces; none for a source.
        models: the models that it can use, as under `models:` of a pipeline; see `fake_teacher`.
        project: a project whose prompts, filters, plugins and other files the stage can use; by default it can use the
            prompts and filters of a new project.
        folder: an empty folder for the temporary project, which is kept; by default a folder that is removed.

    Raises:
        UserError: with all mistakes in the stage, the models or the project.
        RunError: when the run fails.
    """
    if folder is None:
        with tempfile.TemporaryDirectory(prefix="tracefactory-") as temporary:
            return await run_stage(stage, rows, models=models, project=project, folder=Path(temporary))
    _lay_out(folder, project)
    given = [_put(rows, folder)] if rows else []
    last = {"id": "tested", **stage}
    head = {"name": "test", "version": "1", "models": {name: dict(one) for name, one in (models or {}).items()}}
    run = {"executor": "inline", "workers": 1, "shards": 1}
    text = yaml.safe_dump({**head, "stages": [*given, last], "run": run}, sort_keys=False)
    file = folder / "pipelines" / "test.yaml"
    file.write_text(text, encoding="utf-8")
    environ = {name: value for name, value in os.environ.items() if name != "TRACEFACTORY_HOME"}
    before = plugins.active()
    try:
        loaded = load_pipeline(file, environ=environ)
        outcome = await run_pipeline(loaded, unwatched)
    finally:
        plugins.activate(*before)
    return _result(outcome.stages[-1], loaded.project.state_dir, {row.id for row in rows}, folder)


def plugin(kind: str, name: str, project: Path) -> Any:
    """Return the entry that a file of a project registers.

    Args:
        kind: filter, decoder, model, operation, pruner, source, verifier or view.
        name: its name, that of its file; of an operation "verb:name".
        project: the folder of the project.

    Raises:
        UserError: for an unknown kind or name, or with all mistakes in the plugins of the project.
    """
    if kind == "filter":
        return load_filters(project / "filters").named(name)
    if kind not in kinds():
        raise UserError(Mistake(f"there are no plugins of the kind {kind!r}", hint=nearest(kind, ["filter", *kinds()])))
    plugins.load(project)
    return registry(kind).get(name)


@asynccontextmanager
async def unwatched(flow: Flow, executor: Executor) -> AsyncIterator[None]:
    """Watch a run without a display; an argument of `run_pipeline`."""
    yield


def _lay_out(folder: Path, project: Path | None) -> None:
    """Make a project with links to the files of another one, except its pipelines, tests and results."""
    if project is not None and not project.is_dir():
        raise UserError(f"the project {project} is not a folder")
    source = starter_dir() if project is None else project.resolve()
    (folder / "pipelines").mkdir()
    for entry in source.iterdir():
        wanted = entry.name in FOLDERS if project is None else not entry.name.startswith(".")
        if wanted and entry.name not in _LEFT_OUT:
            (folder / entry.name).symlink_to(entry)
    # `stages` is not a link, because the plugin file of `source: given` is added to it.
    for file in (source / "stages").rglob("*.py") if project is not None else ():
        place = folder / file.relative_to(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(file)


def _put(rows: Sequence[Row], folder: Path) -> dict[str, Any]:
    """Write rows where `source: given` reads them, and return its stage."""
    kind = GivenTraces if isinstance(rows[0], Trace) else GivenProblems
    file = folder / "stages" / "source" / f"{_GIVEN}.py"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(PLUGIN.format(kind=kind.__name__), encoding="utf-8")
    (folder / "given.jsonl").write_text("".join(f"{row.model_dump_json()}\n" for row in rows), encoding="utf-8")
    return {"id": _GIVEN, "source": _GIVEN, "with": {"file": "given.jsonl"}}


def _result(outcome: StageOutcome, state_dir: Path, given: set[str], folder: Path) -> StageRun:
    stored = outcome.rows(state_dir)
    rows = list(stored.rows())
    own = [name for name in stored.columns_of(Table.JUDGED, Span.all()) if name not in PLAIN_COLUMNS]
    judgements: dict[str, Judgement] = {}
    for row in stored.judged(Span.all()).iter_rows(named=True):
        values = {name: row[name] for name in own if row[name] is not None}
        if "verdict" in values:
            values["verdict"] = Verdict.model_validate(values["verdict"])
        decision = Decision(row["reason"], row["detail"], row["failed"], row["owed"])
        judgements[row["id"]] = Judgement(row["id"], decision, values)
    return StageRun(
        rows=rows,
        made=[row for row in rows if row.id not in given],
        judgements=judgements,
        numbers=outcome.tally.numbers,
        notes=outcome.tally.notes,
        folder=folder,
    )
