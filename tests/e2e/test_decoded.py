"""Two models that write together: both executors write the same, and a killed run pays for nothing twice."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import Project, kill_tree, wait_until

pytestmark = pytest.mark.slow  # two torch models in float64, in both executors

PIPELINE = """\
name: rsd
version: "1"
models:
  big: {{use: transformers, model: {teacher}, dtype: float64, concurrency: 4}}
  small: {{use: transformers, model: {student}, dtype: float64}}
stages:
  - id: problems
    source: reasoning_gym
    with: {{size: 5, seed: 3, tasks: [{{task: chain_sum, params: {{min_terms: 2, max_terms: 2}}}}]}}
  - id: rsd
    sample: reverse_speculative
    with: {{teacher: big, student: small, prompt: long, samples: 3, max_tokens: {tokens}, thinking: any, p: 0.05}}
  - id: mixed
    sample: student_prefix
    from: problems
    with: {{teacher: big, student: small, prompt: long, samples: 2, tokens: 5, max_tokens: 20}}
run: {{executor: {executor}, shards: 2}}
"""


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    from tests.unit.decoders.checkpoints import save_pair  # imports torch, which takes seconds

    return save_pair(tmp_path_factory.mktemp("pair"))


@pytest.fixture
def decoding(project_of: Callable[..., Project], pair: tuple[Path, Path]) -> Callable[..., Project]:
    def make(executor: str = "inline", tokens: int = 24, name: str = "demo") -> Project:
        project = project_of("http://127.0.0.1:9/v1", name=name)
        teacher, student = pair
        project.pipeline.write_text(PIPELINE.format(teacher=teacher, student=student, executor=executor, tokens=tokens))
        return project

    return make


def stage(outcome: dict[str, Any], stage_id: str) -> dict[str, Any]:
    (found,) = [one for one in outcome["stages"] if one["id"] == stage_id]
    return found


def test_ray_and_inline_write_the_same_traces(decoding: Callable[..., Project]) -> None:
    inline, ray = decoding(name="inline").make(), decoding("ray", name="ray").make()
    for name in ("rsd", "mixed"):
        assert stage(inline, name)["digest"] == stage(ray, name)["digest"]
        assert stage(inline, name)["tally"]["reasons"] == stage(ray, name)["tally"]["reasons"]


def test_a_killed_run_goes_on_trace_by_trace(decoding: Callable[..., Project]) -> None:
    whole = decoding(tokens=120, name="whole").make()
    project = decoding(tokens=120, name="killed")
    process = project.start()
    wait_until(lambda: len(project.paid_lines()) >= 6)
    kill_tree(process.pid)
    process.wait()
    before = len(project.paid_lines())
    assert before < 25
    resumed = project.make()
    paid = sum(one["paid"].get("requests", 0) for one in resumed["stages"])
    assert paid == 25 - before
    assert len(project.paid_lines()) == len(set(project.paid_lines())) == 25
    assert [one["digest"] for one in resumed["stages"]] == [one["digest"] for one in whole["stages"]]
