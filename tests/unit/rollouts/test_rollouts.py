"""`rollout:`: replies are keyed by content, bounds are enforced, and no row disappears."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path
from typing import Any

import pytest

from tracefactory.config.project import init_project
from tracefactory.core.errors import RunError, UserError
from tracefactory.core.rows import Problem, Trace
from tracefactory.testing import StageRun, fake_teacher, make_problem, make_trace, run_stage

SUMS = [make_problem(f"What is {n} + 3?", str(n + 3)) for n in range(6)]

HEAD = """
from collections.abc import Mapping
from tracefactory.core.rollout import ROLLOUTS, Ask, Rollout
from tracefactory.core.stage import ModelName, PromptName
from tracefactory.core.model import RequestFailed

@ROLLOUTS.register("mine")
class Mine(Rollout):
    \"\"\"A rollout.\"\"\"

    name, version = "mine", "1"
    model: ModelName
    prompt: PromptName

    def requests_at_most(self):
        return {self.model: 2}

    async def run(self, row, ask):
"""


def rollout(
    tmp_path: Path,
    stage: dict[str, Any],
    rows: list[Problem] | list[Trace],
    body: str | None = None,
    **script: Any,
) -> tuple[StageRun, int]:
    """Run a stage against a fake teacher; `body` is that of a rollout `mine` of the project."""
    project = tmp_path / "project"
    if not project.exists():
        init_project(project)
    if body is not None:
        (project / "rollouts").mkdir(exist_ok=True)
        (project / "rollouts" / "mine.py").write_text(HEAD + "\n".join(f"        {line}" for line in body.splitlines()))

    (tmp_path / "run").mkdir(exist_ok=True)

    async def run() -> tuple[StageRun, int]:
        async with fake_teacher(**script) as teacher:
            found = await run_stage(
                stage, rows, models={"teacher": teacher.entry}, project=project, folder=tmp_path / "run"
            )
            return found, teacher.requests

    return asyncio.run(run())


def mine(**more: Any) -> dict[str, Any]:
    return {"rollout": "mine", "with": {"model": "teacher", "prompt": "math_short", **more}}


def test_sampling_stops_at_the_first_correct_attempt(tmp_path: Path) -> None:
    stage = {"rollout": "until_correct", "with": {"model": "teacher", "prompt": "math_short", "attempts": 4}}
    found, requests = rollout(tmp_path, stage, SUMS, accuracy=0.5, style="short")
    by_problem: dict[str, list[Trace]] = {}
    for trace in found.made:
        assert isinstance(trace, Trace)
        by_problem.setdefault(trace.problem_id, []).append(trace)
    assert by_problem.keys() == {problem.id for problem in SUMS}
    assert requests == len(found.made) == found.numbers["requests"]
    assert len(SUMS) <= requests < 4 * len(SUMS)
    for traces in by_problem.values():
        assert len({trace.request_key for trace in traces}) == len(traces)
        assert {trace.measures["rollout_requests"] for trace in traces} == {len(traces)}


def test_a_repeated_rollout_pays_nothing(tmp_path: Path) -> None:
    stage = {"rollout": "until_correct", "with": {"model": "teacher", "prompt": "math_short", "attempts": 4}}
    first, paid = rollout(tmp_path, stage, SUMS, accuracy=0.5, style="short")
    stored = (tmp_path / "run").rename(tmp_path / "before") / ".tracefactory" / "requests"
    shutil.copytree(stored, tmp_path / "run" / ".tracefactory" / "requests")
    second, again = rollout(tmp_path, stage, SUMS, accuracy=0.5, style="short")
    assert paid > 0
    assert again == 0
    assert second.made == first.made


def test_a_revision_goes_on_with_the_conversation(tmp_path: Path) -> None:
    given = {"model": "teacher", "prompt": "math_short", "revise_prompt": "correct", "revisions": 2}
    found, requests = rollout(tmp_path, {"rollout": "revise", "with": given}, SUMS[:1], reply="The answer is 99.")
    (trace,) = found.made
    assert isinstance(trace, Trace)
    assert requests == 3
    assert [turn.role for turn in trace.turns] == ["assistant", "user", "assistant", "user"]
    assert trace.turns[0].content == "The answer is 99."
    assert "corrected solution" in trace.turns[1].content


def test_a_rollout_on_a_trace_names_it_as_parent(tmp_path: Path) -> None:
    trace = make_trace(problem=SUMS[0])
    found, _ = rollout(tmp_path, mine(), [trace], "return await ask(self.model, self.prompt)", reply="The answer is 3.")
    (made,) = found.made
    assert isinstance(made, Trace)
    assert [parent.id for parent in made.parents] == [trace.id]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return []", "returned no trace; a row must not disappear"),
        (
            "for n in range(3): last = await ask(self.model, self.prompt, sample=n)\nreturn last",
            "more than the 2 requests",
        ),
        ("one = await ask(self.model, self.prompt)\nreturn [one, one]", "returned one reply twice"),
        ("return await ask('other', self.prompt)", "more than the 0 requests to 'other'"),
        ("return await ask(self.model, 'math_long')", "which is the value of none of its parameters"),
        (
            "type(self).asked_with = lambda one: {one.model: []}\nreturn await ask(self.model, self.prompt)",
            "gives 'math_short' to 'teacher', which is not in its `asked_with`",
        ),
        ("return await ask(self.model, self.prompt, max_tokens=9999)", "more than max_tokens: 4096"),
        ("return await ask.verify(await ask(self.model, self.prompt))", "without declaring `verifies = True`"),
        (
            "from tracefactory.testing import make_trace\nreturn make_trace(problem=row)",
            "which is no reply to a request of this rollout",
        ),
        ("return 1 / 0", "ZeroDivisionError: division by zero"),
    ],
)
def test_a_rollout_that_breaks_its_contract_stops_the_run(tmp_path: Path, body: str, message: str) -> None:
    with pytest.raises(RunError, match="the rollout 'mine' failed on problem") as stopped:
        rollout(tmp_path, mine(), SUMS[:2], body, reply="The answer is 3.")
    assert message in str(stopped.value)
    assert "mine.py:" in str(stopped.value) or "family.py:" in str(stopped.value)


def test_a_rollout_that_catches_a_failed_request_is_owed(tmp_path: Path) -> None:
    body = """
try:
    return await ask(self.model, self.prompt)
except RequestFailed:
    return await ask(self.model, self.prompt, sample=1)
"""
    found, _ = rollout(tmp_path, mine(), SUMS, body, reply="The answer is 3.", rate_500=0.6, max_faults=3)
    failed = [one for one in found.judgements.values() if one.decision.failed]
    assert failed
    assert len(failed) + len(found.made) == len(SUMS)
    assert all(one.decision.owed and one.decision.reason == "server_error" for one in failed)


def test_a_prompt_variable_without_a_value_is_refused_before_the_run(tmp_path: Path) -> None:
    body = "return await ask(self.model, self.prompt)"
    with pytest.raises(UserError, match="uses 'reasoning', which has no value"):
        rollout(tmp_path, mine(prompt="prune_rewrite"), SUMS, body)
