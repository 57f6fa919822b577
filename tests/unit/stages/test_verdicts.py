"""The verify stages: pass rates by teacher, a judge where rules cannot decide, consensus where there is no gold."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.unit.stages.conftest import RunStages
from tracefactory.config import load_pipeline
from tracefactory.core.model import ChatRequest, RequestFailed
from tracefactory.core.rows import Outcome
from tracefactory.core.stage import Answer
from tracefactory.engine.plan import make_plan
from tracefactory.engine.worker import Worker
from tracefactory.verification.pass_rates import wilson

SOURCE = "  - {id: problems, source: files, with: {paths: problems.jsonl, question: q, answer: GOLD, verifier: math}}\n"
SAMPLE = "  - {id: sampled, sample: chat, with: {model: teacher, prompt: math_short, samples: SAMPLES}}\n"


def stages(verify: str, *, gold: str = "a", samples: int = 5) -> str:
    return (SOURCE + SAMPLE + verify).replace("GOLD", gold).replace("SAMPLES", str(samples))


def problems(*pairs: tuple[str, str | None]) -> str:
    return "".join(json.dumps({"q": question, "a": answer}) + "\n" for question, answer in pairs)


async def test_every_trace_knows_the_pass_rate_of_its_problem(run_stages: RunStages) -> None:
    sums = problems(*((f"What is {n} + {n + 3}?", str(2 * n + 3)) for n in range(12)))
    made = await run_stages(stages("  - {id: checked, verify: auto}"), sums, teacher={"accuracy": 0.6})
    by_problem: dict[str, list[bool]] = {}
    traces = made.traces("checked")
    for trace in traces:
        assert trace.verdict is not None
        by_problem.setdefault(trace.problem_id, []).append(trace.verdict.outcome is Outcome.CORRECT)
    assert len({sum(found) for found in by_problem.values()}) > 2  # problems of several pass rates
    for trace in traces:
        rate = wilson(sum(by_problem[trace.problem_id]), 5)
        assert trace.measures["teacher/pass_rate"] == rate.rate
        assert (
            trace.measures["teacher/pass_rate_low"] == rate.low <= rate.rate <= trace.measures["teacher/pass_rate_high"]
        )
        assert trace.measures["teacher/pass_samples"] == 5
        for name in ("pass_rate", "pass_rate_low", "pass_rate_high", "pass_samples"):  # of the trace's own teacher
            assert trace.measures[name] == trace.measures[f"teacher/{name}"]


async def test_a_judge_decides_what_rules_leave_open_and_no_more(run_stages: RunStages) -> None:
    asked = problems(("Who wrote Faust?", "Johann Wolfgang von Goethe"), ("What is 2 + 3?", "5"))
    judged = stages("  - {id: checked, verify: auto}\n  - {id: judged, verify: judge, with: {model: judge, votes: 3}}")
    made = await run_stages(judged, asked, teacher={}, judge={"reply": "They agree: [SAME]"})
    before = {trace.id: trace.verdict for trace in made.traces("checked")}
    undecided = [verdict for verdict in before.values() if verdict and verdict.outcome is Outcome.UNVERIFIABLE]
    for trace in made.traces("judged"):
        rules, verdict = before[trace.id], trace.verdict
        assert rules is not None
        assert verdict is not None
        if rules.outcome is Outcome.UNVERIFIABLE:
            assert (verdict.outcome, verdict.method, verdict.verifier) == (Outcome.CORRECT, "judge", "judge/judge")
            assert "2 same, 0 different" in (verdict.detail or "")
            assert f"the rules said unverifiable by {rules.method}" in (verdict.detail or "")
        else:
            assert verdict == rules
    texts = {trace.problem_id + trace.answer_text for trace in made.traces("checked")}
    assert made.paid() == 10 + 2 * min(len(undecided), len(texts))  # a majority of three stops after two votes


async def test_a_plan_bounds_the_votes_of_a_judge(run_stages: RunStages, tmp_path: Path) -> None:
    asked = problems(("Who wrote Faust?", "Johann Wolfgang von Goethe"), ("What is 2 + 3?", "5"))
    checked = stages("  - {id: checked, verify: auto}\n")
    more = "  judge: {use: fake, price: {input: 0, output: 2.0}}\n"
    made = await run_stages(checked, asked, teacher={}, more_models=more)
    outcomes = [trace.verdict.outcome for trace in made.traces("checked") if trace.verdict]
    file = tmp_path / "project" / "pipelines" / "t.yaml"
    judged = "  - {id: judged, verify: judge, with: {model: judge, votes: 3, max_tokens: 10}}\n"
    file.write_text(file.read_text().replace(checked, checked + judged))
    for ask, answers in (("unverifiable", outcomes.count(Outcome.UNVERIFIABLE)), ("all", len(outcomes))):
        loaded = load_pipeline(file, sets=[f"stages.judged.with.ask={ask}"])
        (pay,) = [one.to_pay for one in make_plan(loaded, loaded.project.state_dir).stages if one.id == "judged"]
        assert pay is not None
        assert (pay.requests, pay.bound) == (3 * answers, True)
        assert pay.cost_at_most == pytest.approx(3 * answers * 10 * 2.0 / 1e6)


async def test_a_judge_asked_about_everything_reports_its_disagreement(run_stages: RunStages) -> None:
    judged = stages("  - {id: judged, verify: judge, with: {model: judge, votes: 1, ask: all}}", samples=2)
    made = await run_stages(judged, problems(("What is 2 + 3?", "5")), teacher={}, judge={"reply": "[DIFFERENT]"})
    for trace in made.traces("judged"):
        assert trace.verdict is not None
        assert trace.verdict.outcome is Outcome.INCORRECT
        assert "the rules said correct" in (trace.verdict.detail or "")
        assert trace.measures["judge/agrees"] == 0.0
    assert made.paid() > 2  # the votes are counted besides the two samples


async def test_a_vote_that_may_yet_succeed_is_an_owed_verifier_error_and_costs_no_sibling(
    run_stages: RunStages,
) -> None:
    judged = stages("  - {id: judged, verify: judge, with: {model: judge, votes: 1, ask: all}}", samples=4)
    sums = problems(*((f"What is {n} + 5?", str(n + 5)) for n in range(8)))
    script = {"rate_500": 0.5, "max_faults": 99, "reply": "[SAME]"}
    made = await run_stages(judged, sums, teacher={"accuracy": 0.5}, judge=script)
    assert {trace.verdict and trace.verdict.outcome for trace in made.traces("judged")} == {Outcome.CORRECT}
    failed = made.judged("judged").filter("failed")
    assert failed["owed"].all()
    assert set(failed["reason"]) == {"server_error"}
    assert set(failed["verdict"].struct.field("outcome")) == {Outcome.VERIFIER_ERROR.value}
    tally = made.stage("judged").tally
    assert tally.owed == tally.errors == failed.height > 0
    assert tally.kept + tally.errors == tally.rows_in == 32


async def test_a_vote_that_will_never_be_had_is_a_verdict_and_nothing_is_owed(
    run_stages: RunStages, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Worker.complete

    async def complete(self: Worker, model: str, requests: Sequence[ChatRequest], *rest: Any) -> list[Answer]:
        if model != "judge":
            return await real(self, model, requests, *rest)
        return [RequestFailed("bad_request", "too long", attempts=1, retryable=False) for _ in requests]

    monkeypatch.setattr(Worker, "complete", complete)
    judged = stages("  - {id: judged, verify: judge, with: {model: judge, votes: 1, ask: all}}", samples=2)
    made = await run_stages(judged, problems(("What is 2 + 5?", "7")), teacher={}, judge={})
    verdicts = [trace.verdict for trace in made.traces("judged")]
    assert [verdict and (verdict.outcome, verdict.verifier) for verdict in verdicts] == [
        (Outcome.VERIFIER_ERROR, "judge/judge")
    ] * 2
    assert (made.stage("judged").tally.kept, made.stage("judged").tally.owed) == (2, 0)


async def test_the_majority_stands_for_a_missing_gold(run_stages: RunStages) -> None:
    asked = problems(*((f"What is {n} + {2 * n + 1}?", None) for n in range(1, 9)))
    vote = stages("  - {id: voted, verify: consensus, with: {min_samples: 4, min_margin: 0.3}}", gold="null", samples=7)
    made = await run_stages(vote, asked, teacher={"accuracy": 0.7})
    traces = made.traces("voted")
    outcomes = {trace.verdict.outcome for trace in traces if trace.verdict}
    assert outcomes == {Outcome.CORRECT, Outcome.INCORRECT} | (outcomes & {Outcome.UNVERIFIABLE})
    for trace in traces:
        verdict = trace.verdict
        assert verdict is not None
        n = int(trace.problem.question.split()[2])
        if verdict.outcome is Outcome.CORRECT:
            assert verdict.extracted == str(3 * n + 1)
            assert f"pseudo-gold '{3 * n + 1}'" in (verdict.detail or "")
            assert trace.measures["consensus/margin"] >= 0.3
        if trace.measures["consensus/margin"] < 0.3:
            assert verdict.outcome is Outcome.UNVERIFIABLE
