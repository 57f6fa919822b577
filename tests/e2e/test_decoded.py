"""Two models that write together in a pipeline: accepted or not with a reason, paid once, shown by explain."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import Project, kill_tree, wait_until
from tests.unit.decoders.checkpoints import save_pair
from tracefactory.decoders.provenance import Decoded
from tracefactory.requests import RequestStore

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


def test_every_run_is_accounted_for_and_paid_once(decoding: Callable[..., Project]) -> None:
    project = decoding()
    plan = project.run("plan", str(project.pipeline))
    assert "25 requests to pay" in plan
    first = project.make()
    tally = stage(first, "rsd")["tally"]
    assert (tally["rows_in"], tally["errors"]) == (15, 0)
    assert tally["kept"] + tally["dropped"] == 15
    assert set(tally["reasons"]) <= {"not_finished", "no_answer", "incorrect", "unverifiable", "fallback_share"}
    assert 0 < tally["numbers"]["student_tokens_of_all"] < tally["numbers"]["tokens_of_all"]
    assert stage(first, "mixed")["tally"]["kept"] == 10
    assert len(project.paid_lines()) == 25

    stricter = project.make("--set", "stages.rsd.with.max_fallback=0.0")
    assert stage(stricter, "rsd")["paid"]["requests"] == 0
    assert stage(stricter, "mixed")["cached"]
    more = project.make("--set", "stages.rsd.with.samples=4")
    assert stage(more, "rsd")["paid"]["requests"] == 5
    other_rule = project.make("--set", "stages.rsd.with.p=0.5")
    assert stage(other_rule, "rsd")["paid"]["requests"] == 15


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


def test_explain_marks_what_the_student_wrote(decoding: Callable[..., Project]) -> None:
    project = decoding()
    project.make()
    root = project.root / ".tracefactory"
    (folder,) = (root / "stages").glob("mixed-*")
    import pyarrow.parquet as pq

    row = pq.read_table(next(iter(folder.glob("part-*.parquet")))).to_pylist()[0]
    told = project.run("explain", row["id"])
    assert "as it was written, the student's 25.0% of the tokens" in told or row["completion_tokens"] < 20
    decoded = Decoded.model_validate(RequestStore(root).get([row["request_key"]])[row["request_key"]]["completion"])
    opening = "".join(text for role, text in decoded.provenance.spans(decoded.content) if role.name == "STUDENT")
    assert f"⟦{opening.splitlines()[0]}" in told
    assert json.loads(project.run("explain", row["id"], "--json"))["request"]["completion"]["provenance"]


def test_models_that_cannot_write_together_are_the_users_mistake(
    decoding: Callable[..., Project], tmp_path: Path
) -> None:
    project = decoding()
    other = tmp_path / "other"
    shutil.copytree(save_pair(tmp_path / "p")[1], other)
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    tokenizer["model"]["vocab"] = {text: (token + 7) % 256 for text, token in vocabulary.items() if token < 256}
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    told = project.run("run", str(project.pipeline), "--set", f"models.big.model={other}", expect=2)
    assert "big and small have unrelated vocabularies" in told
    assert "`reverse_speculative`" in told
    assert "Traceback" not in told

    text = project.pipeline.read_text()
    project.pipeline.write_text(
        text.replace("big: {use: transformers", "big: {use: fake").replace("dtype: float64, c", "c")
    )
    told = project.run("run", str(project.pipeline), expect=2)
    assert "models that write together are `use: transformers`" in told
