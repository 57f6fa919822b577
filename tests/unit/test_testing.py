"""`tracefactory.testing`: the example of its documentation, rows, fake teachers, and single stages."""

from __future__ import annotations

import asyncio
import doctest
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

import tracefactory.testing
from tracefactory.core import plugins
from tracefactory.core.errors import UserError
from tracefactory.core.rows import Outcome, Thinking
from tracefactory.core.stage import STAGES
from tracefactory.testing import fake_teacher, make_problem, make_trace, plugin, run_stage

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _no_plugins_afterwards() -> Iterator[None]:
    yield
    plugins.activate(Path(), {})


def test_the_example_of_the_documentation_is_right() -> None:
    result = doctest.testmod(tracefactory.testing)
    assert (result.attempted > 8, result.failed) == (True, 0)


def test_rows_are_complete_from_a_few_fields() -> None:
    problem = make_problem("What is 2 + 3?", "5", domain="sums")
    assert problem.id == make_problem("What is 2 + 3?", "5").id != make_problem("What is 2 + 3?", "6").id
    assert (problem.verifier, problem.domain) == ("math", "sums")
    trace = make_trace(problem=problem, reasoning="2 + 3 = 5.", answer_text="It is 5.", outcome="incorrect")
    assert (trace.problem, trace.thinking, trace.completion_tokens) == (problem, Thinking.CLOSED, 8)
    assert trace.verdict is not None
    assert trace.verdict.outcome is Outcome.INCORRECT
    assert make_trace(outcome=None).verdict is None
    assert make_trace().id == make_trace().id != make_trace(answer_text="42").id


def test_verdicts_measures_and_fields_of_given_traces_reach_the_stage() -> None:
    given = [make_trace(answer_text=f"{n}", measures={"s/x": float(n)}, fields={"tag": f"t{n}"}) for n in range(3)]
    stage = {"select": "best", "with": {"measure": "s/x", "best": "lowest", "n": 1}}
    run = asyncio.run(run_stage(stage, given))
    assert run.kept == {given[0].id}
    assert [run.reason(one) for one in given] == [None, "not_among_best", "not_among_best"]
    (kept,) = run.rows
    assert kept == given[0]
    assert run.made == []


def test_a_stage_can_take_problems_and_a_source_takes_no_rows() -> None:
    problems = [make_problem(f"What is {n} + 1?", str(n + 1), measures={"hard": float(n)}) for n in range(3)]
    stage = {"select": "best", "with": {"measure": "hard", "best": "highest", "n": 1, "per": "all"}}
    assert asyncio.run(run_stage(stage, problems)).rows == [problems[2]]
    source = {"source": "reasoning_gym", "with": {"size": 2, "seed": 1, "tasks": [{"task": "chain_sum"}]}}
    assert len(asyncio.run(run_stage(source)).made) == 2


def test_another_script_is_another_model() -> None:
    async def entries() -> list[dict[str, Any]]:
        async with fake_teacher(accuracy=0.5) as one, fake_teacher(accuracy=0.5) as same, fake_teacher() as other:
            return [one.entry, same.entry, other.entry]

    one, same, other = asyncio.run(entries())
    assert one["provider"] == same["provider"] != other["provider"]
    assert one["base_url"] != same["base_url"]


def test_an_invalid_script_is_refused() -> None:
    async def start() -> None:
        async with fake_teacher(acuracy=1.0):
            pass

    with pytest.raises(ValidationError, match="acuracy"):
        asyncio.run(start())


def test_the_mistakes_of_a_stage_are_reported(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no `prune: after_anser` \(did you mean 'after_answer'\?\)"):
        asyncio.run(run_stage({"prune": "after_anser"}, [make_trace()]))
    with pytest.raises(UserError, match=r"no_such is not a folder"):
        asyncio.run(run_stage({"verify": "auto"}, [make_trace()], project=tmp_path / "no_such"))


def test_a_run_leaves_nothing_behind_but_the_folder_it_was_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRACEFACTORY_HOME", str(tmp_path / "home"))
    run = asyncio.run(run_stage({"verify": "auto"}, [make_trace()]))
    assert not run.folder.exists()
    assert not (tmp_path / "home").exists()
    assert "source:given" not in STAGES
    folder = tmp_path / "kept"
    folder.mkdir()
    kept = asyncio.run(run_stage({"verify": "auto"}, [make_trace()], folder=folder))
    assert (kept.folder / ".tracefactory" / "stages").is_dir()


def test_filters_and_stages_can_use_the_files_of_their_project(tmp_path: Path) -> None:
    project = tmp_path / "project"
    for folder in ("filters", "stages/trim", "lists", "pipelines"):
        (project / folder).mkdir(parents=True)
    (project / "lists" / "names.txt").write_text("Ben\n")
    (project / "filters" / "named.py").write_text(
        "from tracefactory.filters import KEEP, Decision, Files, Trace, drop, trace_filter\n\n"
        '@trace_filter(files=("lists/names.txt",))\n'
        "def named(trace: Trace, *, files: Files) -> Decision:\n"
        '    "Drop what asks for a name."\n'
        '    return drop("named") if files["lists/names.txt"].strip() in trace.problem.question else KEEP\n'
    )
    traces = [make_trace(question=f"How old is {name}?", gold="3") for name in ("Ben", "Eva")]
    run = asyncio.run(run_stage({"filter": ["named"]}, traces, project=project))
    assert [run.reason(one) for one in traces] == ["named", None]
    assert plugin("filter", "named", project).name == "named"


def test_an_unknown_kind_of_plugin_is_answered_with_the_nearest() -> None:
    with pytest.raises(UserError, match=r"kind 'prune' \(did you mean 'pruner'\?\)"):
        plugin("prune", "x", ROOT)
