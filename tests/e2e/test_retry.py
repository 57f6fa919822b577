"""`--retry-failed KIND` owes failed rows of one kind in every stage that asks models, and `plan` counts them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import Project, Teacher
from tracefactory.store.stages import StageFolder, Tally

Teachers, Projects = Callable[..., Teacher], Callable[..., Project]
PIPELINE = """\
name: retried
version: "1"
models:
  teacher: {{use: openai, model: fake, base_url: "{url}", retries: 0}}
  failing: {{use: openai, model: fake, base_url: "{failing}", retries: 0, price: {{input: 0, output: 1}}}}
stages:
  - {{id: problems, source: files, with: {{paths: sums.jsonl}}}}
  - {{id: long, sample: chat, with: {{model: teacher, prompt: long, samples: 1}}}}
  - {stage}
  - {{id: dataset, publish: dataset}}
run: {{max_error_rate: 1}}
"""
JUDGE = "{id: asked, verify: judge, with: {model: failing, votes: 1, ask: all}}"
ROLLOUT = "{id: asked, rollout: until_correct, from: problems, with: {model: failing, prompt: short, attempts: 1}}"
PRUNE = "{id: asked, prune: rewrite, with: {model: failing, prompt: prune_rewrite, check: answer}}"


def write_pipeline(project: Project, **values: str) -> None:
    prompts = Path(__file__).parents[2] / "prompts"
    shutil.copytree(prompts, project.root / "prompts", dirs_exist_ok=True)
    project.pipeline.write_text(PIPELINE.format(**values))


def plan(project: Project, *options: str) -> dict[str, Any]:
    return json.loads(project.run("plan", str(project.pipeline), "--json", *options))


def tally(project: Project, stage_id: str) -> Tally:
    """Return the counts of a finished stage."""
    (key,) = (one["key"] for one in plan(project)["stages"] if one["id"] == stage_id)
    record = StageFolder(project.root / ".tracefactory", stage_id, key).record()
    assert record is not None
    return record.tally


@pytest.mark.parametrize(
    ("stage", "reply"),
    [(JUDGE, "[SAME]"), *(pytest.param(stage, None, marks=pytest.mark.slow) for stage in (ROLLOUT, PRUNE))],
)
def test_one_kind_of_failure_is_tried_again(
    teacher_of: Teachers, project_of: Projects, stage: str, reply: str | None
) -> None:
    failing = teacher_of(rate_500=0.15, rate_drop=0.15, max_faults=1, reply=reply)
    project = project_of("", size=100)
    write_pipeline(project, url=teacher_of().url, failing=failing.url, stage=stage)
    assert "nothing is published" in project.run("run", str(project.pipeline), expect=1)
    failed = tally(project, "asked").reasons
    assert failed.keys() == {"server_error", "connection"}
    assert min(failed.values()) > 0
    assert plan(project)["requests"] == sum(failed.values())

    received = failing.stats()["received"]
    assert plan(project, "--retry-failed", "connection")["requests"] == failed["connection"]
    assert plan(project, "--retry-failed", "timeout")["requests"] == 0
    project.run("run", str(project.pipeline), "--retry-failed", "connection", expect=1)
    assert failing.stats()["received"] == received + failed["connection"]
    assert tally(project, "asked").reasons == {"server_error": failed["server_error"]}

    project.make()
    assert failing.stats()["received"] == received + sum(failed.values())
    assert tally(project, "asked").errors == 0


def test_final_failures_are_not_to_pay(teacher_of: Teachers, project_of: Projects) -> None:
    """A plan counts what a run sends: owed rows, and final ones only where their kind is named."""
    teacher = teacher_of(filtered="+ 1", rate_500=0.3, max_faults=1)
    project = project_of(teacher.url, size=100)
    no_retries = ["--set", "models.long_teacher.retries=0", "--set", "models.short_teacher.retries=0"]
    project.run("run", str(project.pipeline), *no_retries, "--set", "run.max_error_rate=1", expect=1)
    failed = {name: tally(project, name).reasons for name in ("long", "short")}
    filtered, owed = (sum(one.get(kind, 0) for one in failed.values()) for kind in ("content_filter", "server_error"))
    assert filtered > 0
    assert owed > 0
    received = teacher.stats()["received"]
    assert plan(project)["requests"] == owed
    assert plan(project, "--retry-failed", "content_filter")["requests"] == filtered
    assert "no kind of failure" in project.run("plan", str(project.pipeline), "--retry-failed", "filter", expect=2)
    project.make()
    assert teacher.stats()["received"] == received + owed
    assert plan(project)["requests"] == 0
    project.make("--retry-failed", "content_filter", "--set", "version=2")
    assert teacher.stats()["received"] == received + owed + filtered
