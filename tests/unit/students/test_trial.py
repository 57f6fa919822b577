"""A trial is made of the pipeline's own stages, so that it shares with a run what either paid for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tracefactory.config import load_pipeline
from tracefactory.core.environment import Environment
from tracefactory.core.errors import UserError
from tracefactory.core.model import ChatRequest, RequestFailed
from tracefactory.core.pipeline import Pipeline, StageSpec
from tracefactory.core.stage import Answer, Batch, stage_of
from tracefactory.engine.trial import MEASURED, trial_of
from tracefactory.stages._sampling import SampleStage
from tracefactory.stages.measure.student import MeasureStudentParams

ROOT = Path(__file__).parents[3]
PIPELINE = """\
name: t
version: "1"
models:
  big: {use: fake}
  small: {use: fake, script: {seed: 1}}
  spare: {use: fake, script: {seed: 2}}
  judge: {use: fake, script: {seed: 3}}
  pupil: {use: transformers, model: "packaged:smollm2-135m"}
stages:
  - {id: problems, source: files, with: {paths: problems.jsonl}}
  - {id: long, sample: chat, from: problems, with: {model: big, prompt: math_long, samples: 8, max_tokens: 99}}
  - {id: short, sample: chat, from: problems, with: {model: small, prompt: math_short, samples: 4}}
  - {id: checked, verify: auto, from: [long, short]}
  - {id: judged, verify: judge, with: {model: judge, votes: 1}}
"""
MEASURE = "  - {id: fitted, measure: student, with: {student: pupil, measures: {top_k: [5]}}}\n"


@pytest.fixture
def load(tmp_path: Path) -> Callable[..., Pipeline]:
    for shipped in ("prompts", "filters"):
        (tmp_path / shipped).symlink_to(ROOT / shipped)
    (tmp_path / "pipelines").mkdir()
    (tmp_path / "problems.jsonl").write_text('{"question": "1 + 1?", "answer": "2"}\n')

    def make(stages: str = "", models: str = "") -> Pipeline:
        file = tmp_path / "pipelines" / "t.yaml"
        file.write_text(PIPELINE.replace("stages:\n", models + "stages:\n") + stages)
        return load_pipeline(file)

    return make


async def sampled(stage: StageSpec[Any], pipeline: Pipeline) -> dict[str, str]:
    """Return the traces that a stage samples, by the key of their requests, in the order they are asked for."""
    op, source, keys = stage_of(stage), pipeline.stage("problems"), []
    assert isinstance(op, SampleStage)

    async def complete(model: str, requests: Sequence[ChatRequest], *rest: Any) -> list[Answer]:
        keys.extend(request.key for request in requests)
        return [RequestFailed("down", "nobody is asked here", attempts=1, retryable=True) for _ in requests]

    environment = Environment(root=pipeline.project.root)
    services: Any = SimpleNamespace(
        pipeline=pipeline, environment=environment, complete=complete, client=lambda name: None
    )
    problems = [made.row for made in stage_of(source).read(source, pipeline, environment)]
    made, _ = await op.sample(stage, Batch(problems=problems), services)
    return dict(zip(keys, [one.row.id for one in made], strict=True))


async def test_a_trial_sends_the_first_requests_of_a_run(load: Callable[..., Pipeline]) -> None:
    pipeline = load(MEASURE)
    trial = trial_of(pipeline, 50)
    assert [(one.stage.id, one.model) for one in trial.candidates] == [
        ("long", "big"),
        ("short", "small"),
        ("teacher-spare", "spare"),
    ]
    assert trial.pipeline.limit == 50
    assert trial.judged
    for name, samples in (("long", 8), ("short", 4)):
        whole = await sampled(pipeline.stage(name), pipeline)
        assert len(whole) == samples  # of one problem
        (first,) = (await sampled(trial.pipeline.stage(name), trial.pipeline)).items()
        assert first == next(iter(whole.items()))  # the same trace, so its scores are found again
    assert trial.pipeline.stage("teacher-spare").params.max_tokens == 99
    params = trial.pipeline.stage(MEASURED).params
    assert isinstance(params, MeasureStudentParams)
    assert params.measures.top_k == (5,)  # measured as the pipeline measures


def test_a_named_teacher_is_tried_alone_even_when_it_only_judges(load: Callable[..., Pipeline]) -> None:
    pipeline = load(MEASURE)
    assert [one.model for one in trial_of(pipeline, 5, teachers=["small"]).candidates] == ["small"]
    assert [one.stage.id for one in trial_of(pipeline, 5, teachers=["judge"]).candidates] == ["teacher-judge"]


def test_a_trial_uses_the_measured_student_or_the_only_one(load: Callable[..., Pipeline]) -> None:
    second = '  other: {use: transformers, model: "packaged:smollm2-135m"}\n'
    assert trial_of(load(), 5).student == "pupil"
    assert trial_of(load(MEASURE, second), 5).student == "pupil"
    assert trial_of(load("", second), 5, student="other").student == "other"
    with pytest.raises(UserError, match=r"which student\? other, pupil \(use --student NAME\)"):
        trial_of(load("", second), 5)


def test_a_trial_reports_all_mistakes_together(load: Callable[..., Pipeline]) -> None:
    with pytest.raises(UserError) as caught:
        trial_of(load(MEASURE), 5, student="pupl", teachers=["bigg", "smal"])
    output = [mistake.message for mistake in caught.value.mistakes]
    assert output == [
        "--student: unknown model 'pupl'",
        "--teacher: unknown teacher 'bigg'",
        "--teacher: unknown teacher 'smal'",
    ]
    with pytest.raises(UserError, match="'spare' is `use: fake`"):
        trial_of(load(MEASURE), 5, student="spare")


def test_an_unset_variable_is_reported_before_any_request(load: Callable[..., Pipeline]) -> None:
    pipeline = load(MEASURE, '  far: {use: openai, model: m, base_url: "env:FAR_URL"}\n')
    with pytest.raises(UserError, match="model 'far': the environment variable FAR_URL is not set"):
        trial_of(pipeline, 5, environ={})
