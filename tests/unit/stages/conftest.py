"""Run small pipelines in this process against a fake teacher, and read what their stages made."""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from functools import lru_cache
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from tracefactory.config import load_pipeline
from tracefactory.core.checkpoint import Checkpoint
from tracefactory.core.rows import Trace
from tracefactory.core.spans import Span
from tracefactory.engine.run import run_pipeline
from tracefactory.engine.runs import RunOutcome, StageOutcome
from tracefactory.stages.measure import student
from tracefactory.students import open_student
from tracefactory.testing import fake_teacher, unwatched

ROOT = Path(__file__).parents[3]
RunStages = Callable[..., Coroutine[Any, Any, "Made"]]


class Made:
    """What a run made."""

    def __init__(self, outcome: RunOutcome, root: Path) -> None:
        self.outcome, self.root = outcome, root

    def stage(self, stage_id: str) -> StageOutcome:
        (stage,) = [one for one in self.outcome.stages if one.id == stage_id]
        return stage

    def traces(self, stage_id: str) -> list[Trace]:
        return self.stage(stage_id).rows(self.root).traces(Span.all())

    def judged(self, stage_id: str) -> pl.DataFrame:
        """What a stage decided about every row that it made or was given."""
        return self.stage(stage_id).rows(self.root).judged(Span.all())

    def paid(self) -> int:
        return int(sum(stage.paid.get("requests", 0) for stage in self.outcome.stages))


@lru_cache(maxsize=1)
def opened_once(spec: Checkpoint) -> Any:
    return open_student(spec)


@pytest.fixture
def run_stages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunStages:
    """Run `stages` (YAML) in a project with the shipped prompts and filters; each script is a fake model's.

    Fields of a script under `entry` are those of the model in the pipeline. A student is loaded once for all tests.
    """
    monkeypatch.setattr(student, "open_student", opened_once)

    async def run(stages: str, problems: str, *, more_models: str = "", **scripts: dict[str, Any]) -> Made:
        root = tmp_path / "project"
        (root / "pipelines").mkdir(parents=True, exist_ok=True)
        for shipped in ("prompts", "filters"):
            if not (root / shipped).exists():
                (root / shipped).symlink_to(ROOT / shipped)
        (root / "problems.jsonl").write_text(problems)
        async with AsyncExitStack() as stack:
            models = ""
            for name, script in scripts.items():
                own = script.get("entry", {})
                answers = {key: value for key, value in script.items() if key != "entry"}
                teacher = await stack.enter_async_context(fake_teacher(**answers))
                # One provider whatever the script says: what was paid for is found again under another script.
                entry = {**teacher.entry, "model": name, "provider": "fake", **own}
                models += f"  {name}: {json.dumps(entry)}\n"
            run = "run: {executor: inline, shards: 2, workers: 1}"
            text = f'name: t\nversion: "1"\nmodels:\n{models}{more_models}stages:\n{stages}\n{run}\n'
            pipeline = root / "pipelines" / "t.yaml"
            pipeline.write_text(text)
            loaded = load_pipeline(pipeline)
            return Made(await run_pipeline(loaded, unwatched), loaded.project.state_dir)

    return run
