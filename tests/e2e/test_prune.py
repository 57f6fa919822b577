"""Pruning through the command line with a fake student: linked, reversible, paid for once, the same everywhere."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from math import ceil, log2
from pathlib import Path
from typing import Any

import pytest
from datasets import load_dataset

from tests.e2e.conftest import Project, Teacher, kill_tree, wait_until
from tracefactory.core.rows import Outcome, ParentRole, Thinking, Trace
from tracefactory.core.spans import Span
from tracefactory.core.stage import UNCHANGED
from tracefactory.pruning import read_derivation, restored
from tracefactory.store.rows import stored_rows
from tracefactory.text.steps import segment

PROMPTS = Path(__file__).parents[2] / "prompts"
PIPELINE = """\
name: pruned-sums
version: "1"
models:
  teacher: {{use: openai, model: fake-teacher, base_url: "{url}", concurrency: 16, retries: 8}}
  student: {{use: openai, model: fake-student, base_url: "{url}", retries: 8, price: {{input: 0, output: 1.0}}}}
stages:
  - id: problems
    source: files
    with: {{paths: sums.jsonl}}
  - {{id: long, sample: chat, with: {{model: teacher, prompt: long, samples: 2}}}}
  - {{id: checked, verify: auto}}
  - {{id: right, filter: [verdict]}}
  - {{id: cut, prune: binary_cut, with: {{model: student}}}}
  - {{id: rest, prune: after_answer, from: cut, with: {{evidence: result, check: answer}}}}
  - {{id: dataset, publish: dataset, from: cut, with: {{views: [sft, raw, masked, preference]}}}}
run: {{executor: {executor}}}
"""


@pytest.fixture
def pruning_of(project_of: Callable[..., Project]) -> Callable[..., Project]:
    """Make projects with the pipeline above and the shipped prompts."""

    def make(url: str, *, size: int = 20, executor: str = "inline", name: str = "demo") -> Project:
        project = project_of(url, size=size, name=name)
        for file in PROMPTS.glob("prune_*.md"):
            (project.root / "prompts" / file.name).write_text(file.read_text())
        project.pipeline.write_text(PIPELINE.format(url=url, executor=executor))
        return project

    return make


def rows(project: Project, stage: dict[str, Any]) -> list[Trace]:
    return stored_rows(project.root / ".tracefactory", stage["id"], stage["key"]).traces(Span.all())


def parent_of(trace: Trace) -> str:
    return trace.parent(ParentRole.PRUNED) or ""


def by_id(outcome: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {stage["id"]: stage for stage in outcome["stages"]}


def test_every_row_is_pruned_or_says_why_and_gives_its_parent_back(
    teacher_of: Callable[..., Teacher], pruning_of: Callable[..., Project]
) -> None:
    teacher = teacher_of(accuracy=0.8, rate_429=0.1, rate_500=0.1)
    project = pruning_of(teacher.url)
    outcome = by_id(project.make())
    parents = {trace.id: trace for trace in rows(project, outcome["right"])}
    cut = rows(project, outcome["cut"])
    pruned = [trace for trace in cut if trace.parents]
    assert len(cut) == len(parents) == outcome["cut"]["tally"]["rows_in"]
    assert len(pruned) > 10
    for trace in pruned:
        parent, found = parents[parent_of(trace)], restored(trace)
        assert found is not None
        assert found[0].trace.reasoning == parent.reasoning
        assert found[0].trace.answer_text == parent.answer_text
        assert trace.verdict is not None
        assert trace.verdict.outcome is Outcome.CORRECT
        assert trace.thinking is Thinking.CLOSED
        assert len(trace.reasoning) < len(parent.reasoning)
        assert trace.measures["prune_tokens_saved_estimated"] > 0
    stand = [trace for trace in cut if not trace.parents]
    assert {trace.id for trace in stand} | {parent_of(trace) for trace in pruned} == parents.keys()
    reasons = [derivation.fallback for trace in stand if (derivation := read_derivation(trace))]
    numbers = outcome["cut"]["tally"]["numbers"]
    assert all(reasons)
    assert len(reasons) == sum(n for name, n in numbers.items() if name.startswith(UNCHANGED))
    assert numbers["pruned"] == len(pruned)
    bound = sum(ceil(log2(len(segment(trace.reasoning)))) + 1 for trace in parents.values())
    assert len(parents) < numbers["calls"] <= bound
    assert outcome["cut"]["paid"]["requests"] <= numbers["calls"]


def test_pruning_again_pays_for_what_is_new_alone(
    teacher_of: Callable[..., Teacher], pruning_of: Callable[..., Project]
) -> None:
    teacher = teacher_of()
    project = pruning_of(teacher.url)
    project.make()
    paid = teacher.stats()["completed_total"]
    assert all(stage["cached"] for stage in project.make()["stages"])
    others = ["--set", "stages.cut.with.conclusion=original", "--set", "version=2"]
    assert "conclusion: student -> original" in project.run("plan", str(project.pipeline), *others)
    outcome = by_id(project.make(*others))
    assert not outcome["cut"]["cached"]
    assert teacher.stats()["completed_total"] == paid  # the same questions, so nothing to pay
    assert {trace.answer_text for trace in rows(project, outcome["cut"])} == {
        trace.answer_text for trace in rows(project, outcome["right"])
    }
    project.make("--set", "stages.cut.with.samples=2", "--set", "version=3")
    assert teacher.stats()["completed_total"] > paid


@pytest.mark.slow
def test_ray_and_inline_prune_alike_and_a_killed_run_pays_nothing_twice(
    teacher_of: Callable[..., Teacher], pruning_of: Callable[..., Project]
) -> None:
    teacher = teacher_of(accuracy=0.9, latency_s=0.1)
    inline = pruning_of(teacher.url, name="inline").make()
    project = pruning_of(teacher.url, executor="ray", name="ray")
    process = project.start()
    wait_until(lambda: len(project.paid_lines()) > 60, seconds=120)  # 40 of them are the teacher's
    kill_tree(process.pid)
    process.wait()
    outcome = project.make()
    assert [stage["digest"] for stage in outcome["stages"]] == [stage["digest"] for stage in inline["stages"]]
    lines = project.paid_lines()
    assert len(lines) == len(set(lines))


@pytest.mark.slow
def test_a_run_that_is_stopped_while_it_prunes_goes_on(
    teacher_of: Callable[..., Teacher], pruning_of: Callable[..., Project]
) -> None:
    teacher = teacher_of(latency_s=0.4)
    project = pruning_of(teacher.url)
    process = project.start()
    wait_until(lambda: len(project.paid_lines()) > 50)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    before = teacher.stats()["completed_total"]
    assert len(project.paid_lines()) == before
    project.make()
    lines = project.paid_lines()
    assert len(lines) == len(set(lines)) == teacher.stats()["completed_total"] > before


def test_a_student_that_is_down_makes_error_rows_that_are_tried_again(
    teacher_of: Callable[..., Teacher], pruning_of: Callable[..., Project]
) -> None:
    project = pruning_of(teacher_of(rate_500=0.2, max_faults=1).url)
    none = ["--set", "models.student.retries=0", "--set", "run.max_error_rate=1"]
    assert "nothing is published" in project.run("run", str(project.pipeline), *none, expect=1)
    none += ["--set", "stages.dataset.with.allow_missing=1"]
    first = by_id(project.make("--no-requests", *none))["cut"]["tally"]
    assert first["errors"] == first["owed"] == first["reasons"]["server_error"] > 0
    assert first["kept"] + first["errors"] == first["rows_in"]
    assert "failed rows to retry" in project.run("plan", str(project.pipeline), *none, "--set", "version=2")
    assert by_id(project.make("--set", "version=2"))["cut"]["tally"]["errors"] == 0


def test_explain_tells_the_diff_and_where_the_row_comes_from(
    teacher_of: Callable[..., Teacher], pruning_of: Callable[..., Project]
) -> None:
    project = pruning_of(teacher_of(accuracy=0.6).url)
    outcome = by_id(project.make())
    pruned = next(trace for trace in rows(project, outcome["cut"]) if trace.parents)
    told = project.run("explain", pruned.id)
    assert f"{parent_of(pruned)}: " in told
    assert "@@ cut step" in told
    assert f"stages of {parent_of(pruned)}, from which this row was made" in told
    assert "[sample: chat] kept" in told
    above = json.loads(project.run("explain", parent_of(pruned), "--json"))
    assert [(child["id"], child["stage"]) for child in above["children"]] == [(pruned.id, "cut")]
    stands = next(trace for trace in rows(project, outcome["cut"]) if not trace.parents)
    derivation = read_derivation(stands)
    assert derivation is not None
    assert f"not pruned: {derivation.fallback}" in project.run("explain", stands.id)


@pytest.mark.slow
def test_the_raw_and_the_pruned_traces_can_be_published_and_trained_on(
    teacher_of: Callable[..., Teacher], pruning_of: Callable[..., Project], tmp_path: Path
) -> None:
    project = pruning_of(teacher_of(accuracy=0.6).url)
    outcome = by_id(project.make())
    release = str(project.root / "out" / "pruned-sums" / "1")
    views = {
        name: load_dataset(release, name, split="train", cache_dir=str(tmp_path / "cache"))
        for name in ("sft", "masked", "preference")
    }
    kept = outcome["cut"]["tally"]["kept"]
    assert views["sft"].num_rows == views["masked"].num_rows == kept
    assert views["preference"].num_rows <= outcome["cut"]["tally"]["numbers"]["pruned"] < kept
    assert any("the view preference has" in note for note in outcome["dataset"]["tally"]["notes"])
    for row in views["preference"]:
        assert row["chosen_length"] < row["rejected_length"]
    masked = {row["id"]: row for row in views["masked"]}
    for row in views["sft"]:
        last = masked[row["id"]]["masked_messages"][-1]
        kept_parts = [one for one in last["train_detail"] if one["train"]]
        text = "".join(last["content"][one["begin_offset"] : one["end_offset"] + 1] for one in kept_parts)
        assert text.split() == row["completion"][0]["content"].split()
    others = ["--set", "stages.dataset.from=right", "--set", "version=raw"]
    raw = by_id(project.make(*others))["dataset"]["tally"]
    assert raw["kept"] == kept
    assert f"the view preference has 0 rows and omits {kept}: no_partner {kept}" in raw["notes"]
    assert by_id(project.make(*others))["dataset"]["cached"]


def test_the_papers_profile_starts_from_traces_and_samples_nothing(
    teacher_of: Callable[..., Teacher], project_of: Callable[..., Project], monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = teacher_of(reply="So it is \\boxed{42}.")
    project = project_of(teacher.url)
    for file in PROMPTS.glob("*.md"):
        (project.root / "prompts" / file.name).write_text(file.read_text())
    project.pipeline.write_text((PROMPTS.parent / "pipelines" / "efficient_long_cot.yaml").read_text())
    thought = "We add.\n\n17 + 20 = 37.\n\nThen 37 + 5 = 42.\n\nWait, is it?\n\nYes.\n\nSo the answer is 42."
    row = {
        "problem": "17 + 25?",
        "answer": "42",
        "generations": [f"<think>\n{thought}\n</think>\n\nIt is \\boxed{{42}}."],
    }
    (project.root / "traces.jsonl").write_text(json.dumps(row) + "\n")
    monkeypatch.setenv("STUDENT_URL", teacher.url)
    told = project.run("plan", str(project.pipeline), "--profile", "paper", expect=2)
    assert "the environment variable OPENR1_MATH is not set" in told
    monkeypatch.setenv("OPENR1_MATH", "traces.jsonl")
    paper = ("--profile", "paper", "--set", "run.executor=inline")
    outcome = by_id(project.make(*paper))
    assert list(outcome) == ["problems", "checked", "right", "cut", "pruned", "dataset", "raw"]
    card = (project.root / "out" / "efficient-long-cot" / "2026.11.1" / "README.md").read_text()
    assert "SFT loss of the chosen completion with weight 0.3" in card
    assert 'loss_type=["sigmoid", "sft"], loss_weights=[1.0, 0.3]' in card
    assert "pref_ftx: 0.3" in card
    assert "`efficient-long-cot-raw` (stage `raw`)" in card
    (pruned,) = rows(project, outcome["pruned"])
    assert pruned.reasoning == "We add."
    assert (pruned.model, pruned.answer_text) == ("deepseek-ai/DeepSeek-R1", "So it is \\boxed{42}.")
    assert outcome["cut"]["tally"]["numbers"]["calls"] <= ceil(log2(6)) + 1
    assert all(stage["cached"] for stage in project.make(*paper)["stages"])
    # Where the file lies is not what the rows are.
    (project.root / "moved").mkdir()
    monkeypatch.setenv(
        "OPENR1_MATH", str((project.root / "traces.jsonl").rename(project.root / "moved" / "traces.jsonl"))
    )
    told = project.run("plan", str(project.pipeline), *paper, "--json")
    assert str(project.root) not in told
