"""Prune stages on imported traces: what is in their keys, what they refuse, and that every row is accounted for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.unit.stages.conftest import ROOT, RunStages
from tracefactory.config import load_pipeline
from tracefactory.core.errors import UserError
from tracefactory.core.rows import Outcome, ParentRole, Thinking, Trace
from tracefactory.core.stage import STAGES
from tracefactory.engine.identity import identities
from tracefactory.engine.plan import make_plan
from tracefactory.engine.worker import Worker
from tracefactory.pruning import PRUNERS, read_derivation, restored
from tracefactory.stages.prune import family
from tracefactory.text.steps import segment
from tracefactory.text.steps.words import count_words

THOUGHT = (
    "Take 6 rows of 7.\n\nThen 5 * 7 = 35.\n\nAnd 35 + 7 = 42.\n\nSo the answer is 42.\n\n"
    "Let me check: 42 / 6 = 7, which fits.\n\nSo the answer is 42."
)
SOURCE = """\
  - {id: raw, source: traces, with: {paths: problems.jsonl, question: q, answer: a, model: someone}}
  - {id: checked, verify: auto}
"""
RIGHT = "It is \\boxed{42}."


def line(response: str, answer: str = "42", question: str = "What is six times seven?") -> str:
    return json.dumps({"q": question, "a": answer, "response": response}) + "\n"


def trace(thought: str = THOUGHT, answer_text: str = RIGHT, **rest: str) -> str:
    return line(f"<think>\n{thought}\n</think>\n\n{answer_text}", **rest)


def parent_of(row: Trace) -> str | None:
    return row.parent(ParentRole.PRUNED)


def project(tmp_path: Path, stages: str) -> Path:
    """Write a project with the shipped prompts and return its pipeline file."""
    (tmp_path / "pipelines").mkdir(exist_ok=True)
    if not (tmp_path / "prompts").exists():
        (tmp_path / "prompts").mkdir()
        for file in (ROOT / "prompts").glob("*.md"):
            (tmp_path / "prompts" / file.name).write_text(file.read_text())
    (tmp_path / "problems.jsonl").write_text(trace())
    pipeline = tmp_path / "pipelines" / "t.yaml"
    head = 'name: t\nversion: "1"\nmodels: {student: {use: fake}}\n'
    pipeline.write_text(f"{head}stages:\n{SOURCE}{stages}\nrun: {{executor: inline}}\n")
    return pipeline


def test_every_pruner_is_an_operation() -> None:
    assert [name for name in STAGES if name.startswith("prune:")] == [f"prune:{name}" for name in PRUNERS]
    assert len(list(PRUNERS)) == 8


async def test_rules_alone_prune_what_comes_after_the_answer(run_stages: RunStages) -> None:
    unclosed = line(f"<think>\n{THOUGHT}\n\nWait, maybe I should try another way. Is it 43")
    wrong = trace(THOUGHT.replace("42", "41"), "It is \\boxed{41}.")
    made = await run_stages(
        SOURCE + "  - {id: cut, prune: after_answer, with: {check: answer}}\n"
        "  - {id: checks, prune: verification_steps, from: checked, with: {check: answer}}",
        trace() + unclosed + wrong,
    )
    whole, cut_off, lost = (row.id for row in made.traces("raw"))
    ids = {parent_of(row) or row.id: row for row in made.traces("cut")}
    assert len(ids) == 3
    by_text = {row.reasoning: row for row in made.traces("raw")}
    closed, open_row = by_text[THOUGHT], next(row for row in by_text.values() if row.thinking is Thinking.OPEN)
    for parent in (closed, open_row):
        row = ids[parent.id]
        assert row.reasoning == THOUGHT[: THOUGHT.index("\n\nLet me check")]
        assert (parent_of(row), row.op, row.stage, row.thinking) == (parent.id, "prune:after_answer", "cut", "closed")
        assert row.finish_reason == "stop"
        assert row.verdict is not None
        assert row.verdict.outcome is Outcome.CORRECT
        assert row.measures["prune_characters_saved"] == len(parent.text) - len(row.text)
    assert ids[open_row.id].answer_text == "The final answer is \\boxed{42}."
    assert {whole, cut_off, lost} == ids.keys()
    (fell,) = [row for row in ids.values() if not row.parents]
    derivation = read_derivation(fell)
    assert derivation is not None
    assert derivation.fallback == "answer_not_stated"
    assert fell.reasoning == THOUGHT.replace("42", "41")
    (check_free,) = [row for row in made.traces("checks") if row.parents]
    assert "Let me check" not in check_free.reasoning
    assert check_free.reasoning.endswith("So the answer is 42.")


async def test_the_student_decides_and_its_answer_is_taken(run_stages: RunStages) -> None:
    stages = SOURCE + "  - {id: cut, prune: binary_cut, with: {model: student}}"
    (row,) = (await run_stages(stages, trace(), student={"reply": "Clearly \\boxed{42}."})).traces("cut")
    assert row.reasoning == "Take 6 rows of 7."
    assert row.answer_text == "Clearly \\boxed{42}."
    assert row.measures["prune_calls"] == 3  # of 6 steps
    found = restored(row)
    assert found is not None
    assert (found[0].trace.reasoning, found[0].trace.answer_text) == (THOUGHT, RIGHT)


@pytest.mark.parametrize("reply", ["It is \\boxed{41}.", "I cannot say."])
async def test_a_student_that_is_never_right_leaves_the_trace_as_it_is(run_stages: RunStages, reply: str) -> None:
    stages = SOURCE + "  - {id: cut, prune: binary_cut, with: {model: student}}"
    made = await run_stages(stages, trace(), student={"reply": reply})
    (row,), (parent,) = made.traces("cut"), made.traces("checked")
    assert (row.id, row.reasoning, row.answer_text, row.verdict) == (
        parent.id,
        parent.reasoning,
        parent.answer_text,
        parent.verdict,
    )
    stage = made.stage("cut")
    assert stage.tally.numbers["unchanged_never_valid"] == 1
    assert stage.tally.numbers["calls"] == row.measures["prune_calls"] <= 4


async def test_an_answer_that_was_cut_off_is_no_answer(run_stages: RunStages) -> None:
    reply = "That is \\boxed{42}, as the rows show when they are counted one by one up to the last."
    for most, reason in ((12, "never_valid"), (200, None)):
        stages = SOURCE + f"  - {{id: cut, prune: binary_cut, with: {{model: student, max_tokens: {most}}}}}"
        (row,) = (await run_stages(stages, trace(), student={"reply": reply})).traces("cut")
        derivation = read_derivation(row)
        assert derivation is not None
        assert derivation.fallback == reason


async def test_a_request_that_may_yet_succeed_is_an_error_row_and_one_that_will_not_a_fallback(
    run_stages: RunStages,
) -> None:
    stages = SOURCE + "  - {id: cut, prune: binary_cut, with: {model: student}}"
    rows = trace() + trace(answer_text="So \\boxed{42}.")
    made = await run_stages(stages, rows, student={"rate_500": 1.0, "max_faults": 99})
    stage = made.stage("cut")
    assert (stage.tally.kept, stage.tally.errors, stage.tally.owed) == (0, 2, 2)
    again = await run_stages(stages, rows, student={"reply": RIGHT})
    assert [bool(row.parents) for row in again.traces("cut")] == [True, True]


async def test_a_rewrite_is_asked_for_in_words_and_verified(run_stages: RunStages) -> None:
    stages = SOURCE + "  - {id: new, prune: rewrite, with: {model: writer, target: 0.5, check: answer}}"
    made = await run_stages(stages, trace(), writer={"reply": "<thinking>\nSix times seven is 42.\n</thinking>"})
    (row,) = made.traces("new")
    assert (row.reasoning, row.answer_text, bool(row.parents)) == ("Six times seven is 42.", RIGHT, True)
    journal = "".join(path.read_text() for path in (made.root / "requests").glob("*.jsonl"))
    assert f"in about {round(count_words(THOUGHT) / 2)} words" in journal


async def test_stages_follow_each_other_and_every_parent_comes_back(run_stages: RunStages) -> None:
    stages = """\
  - {id: first, prune: after_answer, with: {check: answer}}
  - {id: second, prune: binary_cut, with: {model: student}}
  - {id: third, prune: verification_steps, with: {check: answer}}
"""
    made = await run_stages(SOURCE + stages, trace(), student={"reply": "It is \\boxed{42}."})
    (raw,), (first,), (second,), (third,) = (made.traces(name) for name in ("checked", "first", "second", "third"))
    assert (parent_of(first), parent_of(second)) == (raw.id, first.id)
    assert third.id == second.id
    derivation = read_derivation(third)
    assert derivation is not None
    assert derivation.fallback == "answer_not_stated"
    for row, parent in ((third, first), (first, raw)):
        found = restored(row)
        assert found is not None
        assert (found[0].trace.reasoning, found[0].trace.id) == (parent.reasoning, parent.id)


async def test_a_model_may_say_what_the_steps_are(run_stages: RunStages) -> None:
    stages = SOURCE + "  - {id: cut, prune: verification_steps, with: {check: answer, types: {model: typist}}}\n"
    made = await run_stages(stages, trace(), typist={"reply": "4: derivation"})
    (row,) = made.traces("cut")
    numbers = made.stage("cut").tally.numbers
    assert (numbers["steps_typed_by_model"], numbers["steps_typed_by_rules"]) == (1, 5)
    derivation = read_derivation(row)
    assert derivation is not None
    assert derivation.fallback == "no_checks_after_answer"
    assert [kind.value for kind in derivation.kinds][3:5] == ["conclusion", "derivation"]
    stages = stages.replace("id: cut", "id: cut2")
    made = await run_stages(stages, trace(), typist={"rate_500": 1.0, "max_faults": 99, "seed": 2})
    assert made.stage("cut2").tally.errors == 0  # paid for already


async def test_steps_that_could_not_be_typed_are_tried_again(run_stages: RunStages) -> None:
    stages = SOURCE + "  - {id: cut, prune: verification_steps, with: {check: answer, types: {model: typist}}}\n"
    made = await run_stages(stages, trace(), typist={"rate_500": 1.0, "max_faults": 99})
    stage = made.stage("cut")
    assert (stage.tally.kept, stage.tally.errors, stage.tally.owed) == (0, 1, 1)


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        ("prune: binary_cut", "model is missing"),
        ("prune: binary_cut, with: {model: studnet}", "did you mean 'student'"),
        ("prune: binary_cut, with: {model: student, samples: 2, valid: 3}", "valid: 3 of 2 samples"),
        ("prune: binary_cut, with: {model: student, prompt: judge_equivalence}", "has no value here"),
        ("prune: binary_cut, with: {model: student, student: student}", "no tokenizer at hand"),
        ("prune: sufficient_prefix, with: {model: student, continue_prompt: prune_conclude}", "prefill that opens"),
        ("prune: after_answer, with: {model: student}", "unknown key 'model'"),
        ("prune: after_answer, with: {granularity: word}", "granularity"),
        ("prune: low_information", "no student"),
        ("prune: binry_cut", "did you mean 'binary_cut'"),
    ],
)
def test_mistakes_are_told_before_anything_runs(tmp_path: Path, stage: str, message: str) -> None:
    pipeline = project(tmp_path, f"  - {{id: cut, {stage}}}")
    with pytest.raises(UserError, match=message):
        load_pipeline(pipeline)


def test_a_student_is_never_shown_the_gold_answer(tmp_path: Path) -> None:
    pipeline = project(tmp_path, "  - {id: cut, prune: binary_cut, with: {model: student, prompt: peeking}}")
    text = "---\nstyle: conclude\n---\n{{ question }} {{ reasoning }} (it is {{ gold }})\n"
    (tmp_path / "prompts" / "peeking.md").write_text(text)
    with pytest.raises(UserError, match="'gold', which has no value here"):
        load_pipeline(pipeline)


def test_what_changes_rows_is_in_the_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = "  - {id: cut, prune: binary_cut, with: {model: student}}"
    file = project(tmp_path, stage)

    def key(*sets: str) -> str:
        return identities(load_pipeline(file, sets=sets))["cut"].key

    keys = [key(), key("stages.cut.with.samples=3"), key("stages.cut.with.granularity=sentence")]
    keys.append(key("models.student.model=other"))
    prompt = tmp_path / "prompts" / "prune_conclude.md"
    prompt.write_text(prompt.read_text() + "\nBe quick.\n")
    keys.append(key())
    monkeypatch.setattr(family, "STEPS_VERSION", "next")
    keys.append(key())
    monkeypatch.setattr(PRUNERS.get("binary_cut"), "version", "next")
    keys.append(key())
    assert len(set(keys)) == len(keys)
    assert key("models.student.concurrency=3", "stages.cut.run.concurrency=2") == keys[-1]


async def test_a_plan_bounds_what_pruning_asks(run_stages: RunStages, tmp_path: Path) -> None:
    ask = "model: student, max_tokens: 10"
    stages = f"""\
  - {{id: cut, prune: binary_cut, with: {{{ask}, samples: 2}}}}
  - {{id: enough, prune: sufficient_prefix, from: checked, with: {{{ask}, continue_max_tokens: 100}}}}
  - {{id: new, prune: rewrite, from: checked, with: {{check: answer, {ask}}}}}
  - {{id: free, prune: after_answer, from: checked, with: {{check: answer}}}}
  - {{id: typed, prune: after_answer, from: checked, with: {{check: answer, types: {{{ask}}}}}}}
  - {{id: after, prune: rewrite, from: cut, with: {{check: answer, {ask}}}}}
"""
    fake = "  student: {use: fake, price: {input: 0, output: 1.0}}\n"
    await run_stages(SOURCE, trace(), more_models=fake)
    file = tmp_path / "project" / "pipelines" / "t.yaml"
    file.write_text(file.read_text().replace("stages:\n" + SOURCE, "stages:\n" + SOURCE + stages))
    loaded = load_pipeline(file)
    made = make_plan(loaded, loaded.project.state_dir)
    planned = {one.id: one for one in made.stages}
    found = {name: one.to_pay for name, one in planned.items() if one.to_pay is not None}
    # Of the 6 steps, the search may ask about any: ceil(log2 6) + 1 = 4 questions.
    assert {name: pay.requests for name, pay in found.items()} == {"cut": 8, "enough": 5, "new": 1, "typed": 1}
    assert all(pay.bound for pay in found.values())
    assert (made.bound, made.requests) == (True, 15)
    assert found["enough"].cost_at_most == pytest.approx((4 * 10 + 100) / 1e6)
    assert 8 * (len(THOUGHT) + 10) < found["cut"].tokens_at_most < 8 * (len(THOUGHT) + 1000)
    assert {name for name, one in planned.items() if one.unknown} == {"after"}  # its rows are not made yet


async def test_what_is_asked_stays_within_what_was_announced(
    run_stages: RunStages, monkeypatch: pytest.MonkeyPatch
) -> None:
    announced: list[float] = []
    real = Worker.complete

    async def complete(self: Worker, *given: Any, **rest: Any) -> Any:
        announced.append(self.numbers["cut"]["at_most"])
        return await real(self, *given, **rest)

    monkeypatch.setattr(Worker, "complete", complete)
    stages = SOURCE + "  - {id: cut, prune: binary_cut, with: {model: student}}"
    made = await run_stages(stages, trace(), student={"reply": "It is \\boxed{41}."})
    stage = made.stage("cut")
    assert announced[0] == 4 >= stage.tally.numbers["requests"] > 1


async def test_a_stage_without_a_bound_announces_none_when_its_shards_are_done(
    run_stages: RunStages, monkeypatch: pytest.MonkeyPatch
) -> None:
    workers: list[Worker] = []
    real = Worker.run_shard

    async def run_shard(self: Worker, *given: Any) -> Any:
        workers.append(self)
        return await real(self, *given)

    monkeypatch.setattr(Worker, "run_shard", run_shard)
    stages = """\
  - {id: problems, source: files, with: {paths: problems.jsonl, question: q, answer: a}}
  - {id: sampled, sample: chat, with: {model: teacher, prompt: math_short, samples: 2}}"""
    await run_stages(stages, '{"q": "What is 1 + 2?", "a": "3"}\n', teacher={})
    live = workers[0].numbers["sampled"]
    assert (live["requests"], live["at_most"]) == (2, 0)  # else it would say that nothing is left to do


async def test_imported_traces_are_problems_with_what_was_written(run_stages: RunStages) -> None:
    source = """\
  - id: raw
    source: traces
    with: {paths: problems.jsonl, question: q, answer: a, model_field: who, tags: [<<, ">>"], finish_reason: end}
  - {id: checked, verify: auto}
"""
    rows: list[dict[str, Any]] = [
        {"q": "6*7?", "a": 42, "response": "<<Rows of 7.>>It is 42.", "who": "m", "end": "stop"},
        {"q": "6*7?", "a": 42, "response": "<<Rows of 7.>>It is 42.", "who": "m", "end": "stop"},
        {"q": "6*7?", "a": 42, "response": "<<Rows of 6.>>It is 42.", "who": "m", "end": None},
        {"q": "6*7?", "a": 42, "response": "<<Rows of", "who": "m", "end": None},
        {"q": "5*7?", "a": 35, "response": " ", "who": "m", "end": "stop"},
        {"q": "", "a": 35, "response": "It is 35.", "who": "m", "end": "stop"},
    ]
    made = await run_stages(source, "".join(json.dumps(row) + "\n" for row in rows))
    found = {row.reasoning: row for row in made.traces("checked")}
    assert {text: (row.sample_index, row.finish_reason, row.thinking.value) for text, row in found.items()} == {
        "Rows of 7.": (0, "stop", "closed"),
        "Rows of 6.": (2, "stop", "closed"),
        "Rows of": (3, "length", "open"),
    }
    assert {row.op for row in found.values()} == {"import"}
    assert {row.model for row in found.values()} == {"m"}
    assert len({row.problem_id for row in found.values()}) == 1
    tally = made.outcome.stages[0].tally
    assert dict(tally.reasons) == {"duplicate": 1, "no_response": 1, "no_question": 1}
    assert tally.rows_in == len(rows)


def test_the_six_steps_of_these_tests_are_six() -> None:
    assert len(segment(THOUGHT)) == 6
