"""Prose, program and equation traces of one question are siblings: which verifier judges is the stage's business."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from tests.unit.stages.conftest import RunStages
from tracefactory.core.errors import UserError
from tracefactory.core.rows import Outcome

FORMS = ("prose", "program", "equation")
STAGES = """\
  - {id: problems, source: files, with: {paths: problems.jsonl, question: q, answer: GOLD}}
  - {id: prose, sample: chat, from: problems, with: {model: prose, prompt: math_short, samples: 2}}
  - {id: program, sample: chat, from: problems, with: {model: program, prompt: math_short, samples: 1}}
  - {id: equation, sample: chat, from: problems, with: {model: equation, prompt: math_short, samples: 1}}
  - {id: said, verify: auto, from: prose}
  - {id: ran, verify: auto, from: program, with: {verifier: program}}
  - {id: solved, verify: auto, from: equation, with: {verifier: equation}}
"""
MIXED = """\
  - id: mixed
    mix: shares
    from: [said, ran, solved]
    with: {by: teacher, shares: {prose: 0.34, program: 0.33, equation: 0.33}}
  - {id: dataset, publish: dataset, from: mixed, with: {views: [sft, raw]}}
  - {id: pairs, publish: dataset, from: [said, ran, solved], with: {name: pairs, views: [raw, preference]}}
"""
VOTED = "  - {id: voted, verify: consensus, from: [said, ran, solved], with: {min_samples: 4}}\n"
PROBLEMS = [(f"A pen costs {n} and a book costs {n + 3}. What do both cost?", 2 * n + 3) for n in range(1, 7)]


def replies(form: str, wrong: int = -1) -> dict[str, Any]:
    """Script a model that answers in one form, wrongly to one problem."""
    found = {}
    for number, (question, right) in enumerate(PROBLEMS):
        value = right + 1 if number == wrong else right
        pen = value - number - 4
        text = {
            "prose": f"They cost {value} together. The answer is \\boxed{{{value}}}.",
            "program": f"```python\npen = {pen}\nprint(pen + {number + 4})\n```",
            "equation": f"```\npen = {pen}\nbook = {number + 4}\nanswer = pen + book\n```",
        }[form]
        found[question] = text if form == "prose" else f"{text}\nThe answer is \\boxed{{{value}}}."
    return {"replies": found}


def jsonl(gold: bool) -> str:
    return "".join(
        json.dumps({"q": question, "a": str(right)} if gold else {"q": question}) + "\n" for question, right in PROBLEMS
    )


async def test_three_forms_are_mixed_and_paired(run_stages: RunStages, tmp_path: Path) -> None:
    stages = STAGES.replace("GOLD", "a") + MIXED
    scripts = {"prose": replies("prose", wrong=2), "program": replies("program"), "equation": replies("equation")}
    made = await run_stages(stages, jsonl(gold=True), **scripts)
    problems = {trace.problem_id for trace in made.traces("said")}
    assert len(problems) == len(PROBLEMS)
    for stage, verifier in (("said", "math"), ("ran", "program"), ("solved", "equation")):
        traces = made.traces(stage)
        assert {trace.problem_id for trace in traces} == problems  # one question, one problem, whoever judges
        assert {trace.verdict.verifier for trace in traces if trace.verdict} == {verifier}
        wrong = [trace for trace in traces if trace.verdict and trace.verdict.outcome is not Outcome.CORRECT]
        assert len(wrong) == (2 if stage == "said" else 0)
    mixed = made.traces("mixed")
    assert len({trace.problem_id for trace in mixed}) == len(mixed) == len(PROBLEMS) - 1
    assert {trace.teacher for trace in mixed} == set(FORMS)
    (file,) = (tmp_path / "project" / "out" / "pairs" / "1" / "data" / "preference").glob("*.parquet")
    pairs = pl.read_parquet(file)
    assert pairs["kind"].to_list() == ["verdict", "verdict"]
    wrong_ids = {
        trace.id for trace in made.traces("said") if trace.verdict and trace.verdict.outcome is Outcome.INCORRECT
    }
    assert set(pairs["rejected_id"]) == wrong_ids
    assert set(pairs["teacher"]) == {"program", "equation"}  # prose was wrong, programs and equations were right
    assert pairs["problem_id"].n_unique() == 1


async def test_three_forms_vote_where_there_is_no_gold(run_stages: RunStages) -> None:
    stages = STAGES.replace("GOLD", "null") + VOTED
    scripts = {"prose": replies("prose"), "program": replies("program", wrong=1), "equation": replies("equation")}
    made = await run_stages(stages, jsonl(gold=False), **scripts)
    voted = made.traces("voted")
    assert len(voted) == 4 * len(PROBLEMS)
    for trace in voted:
        number = next(index for index, (question, _) in enumerate(PROBLEMS) if question == trace.problem.question)
        assert trace.measures["consensus/share"] == (0.75 if number == 1 else 1.0)
        assert trace.verdict is not None
        outvoted = number == 1 and trace.teacher == "program"
        assert trace.verdict.outcome is (Outcome.INCORRECT if outvoted else Outcome.CORRECT)


@pytest.mark.parametrize(("named", "hint"), [("equations", "did you mean 'equation'"), ("sympy", "one of: .*program")])
async def test_a_verifier_that_does_not_exist_is_refused(run_stages: RunStages, named: str, hint: str) -> None:
    stages = STAGES.replace("GOLD", "a").replace("verifier: equation", f"verifier: {named}")
    with pytest.raises(UserError, match=rf"t.yaml:\d+: stage 'solved': .*'{named}'.*{hint}"):
        await run_stages(stages, jsonl(gold=True), prose={}, program={}, equation={})
