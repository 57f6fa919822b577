"""Problems as rows of their own: filtered, selected and sampled from; and traces that are sampled from traces."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path

import pytest

from tests.unit.stages.conftest import ROOT, Made, RunStages
from tests.unit.stages.test_prune import line
from tracefactory.core.errors import UserError
from tracefactory.core.rows import Outcome, ParentRole, Problem
from tracefactory.store.requests import RequestStore

SOURCE = """\
  - {id: problems, source: files, with: {paths: problems.jsonl, question: q, answer: a, domain_field: d, meta: [level]}}
"""
SAMPLED = "  - {id: sampled, sample: chat, with: {model: teacher, prompt: math_long, samples: 2}}\n"
CHECKED = "  - {id: checked, verify: auto}\n"
SUMS = [
    {"q": f"What is {n} + {7 * n}?", "a": str(8 * n), "d": ("easy", "hard")[n % 2], "level": n} for n in range(1, 13)
]
PROBLEMS = "".join(json.dumps(one) + "\n" for one in SUMS)
FILTERS = {
    "hard": '''"""Problems of one domain."""

import json

from tracefactory.filters import KEEP, Decision, Params, Problem, drop, trace_filter


class HardParams(Params):
    level: int = 0


@trace_filter
def hard(problem: Problem, params: HardParams) -> Decision:
    """Keep hard problems of a level; level 3 is one that nobody can say anything of."""
    level = json.loads(problem.meta)["level"]
    if level == 3:
        raise ValueError("nobody knows")
    if problem.domain != "hard":
        return drop("easy", problem.domain)
    return KEEP if level >= params.level else drop("low_level", str(level))
''',
    "brief": '''"""Problems by their length."""

from typing import Iterable

from tracefactory.filters import Params, Rules, column, column_filter, drop_if


class BriefParams(Params):
    max: int


@column_filter
def brief(params: BriefParams) -> Rules:
    """Keep problems of at most `max` characters that are no easy ones."""
    length = column("question").str.len_chars()
    yield drop_if(length > params.max, "wordy", "{} characters", length)
    yield drop_if(column("domain") == "easy", "easy")
''',
}
PROMPTS = {
    "critique": """\
---
name: critique
style: short
---
To {{ question }} somebody thought [{{ reasoning }}] and said <{{ answer_text }}>; it is {{ verdict.outcome }}, as
{{ measures.pass_samples }} samples were. What is 1 + 1?
""",
    "again": """\
---
name: again
style: long
---
To {{ question }} somebody thought [{{ reasoning }}] and said <{{ answer_text }}>. What is 1 + 1?
""",
}


@pytest.fixture(autouse=True)
def _project(tmp_path: Path) -> None:
    """Give the project filters and prompts of its own beside the shipped ones."""
    for folder, suffix, own in (("filters", "py", FILTERS), ("prompts", "md", PROMPTS)):
        place = tmp_path / "project" / folder
        shutil.copytree(ROOT / folder, place, ignore=shutil.ignore_patterns("__pycache__"))
        for name, text in own.items():
            (place / f"{name}.{suffix}").write_text(text)


def problems(made: Made, stage: str) -> list[Problem]:
    found = list(made.stage(stage).rows(made.root).rows())
    assert all(isinstance(one, Problem) for one in found)
    return found  # type: ignore[return-value]


def levels(made: Made, stage: str) -> list[int]:
    return sorted(json.loads(one.meta)["level"] for one in problems(made, stage))


async def test_a_filter_of_problems_decides_by_all_of_a_problem(run_stages: RunStages) -> None:
    made = await run_stages(SOURCE + "  - {id: few, filter: [hard: {level: 6}]}\n" + SAMPLED, PROBLEMS, teacher={})
    assert levels(made, "few") == [7, 9, 11]
    kept = {one.id: one for one in problems(made, "problems")}
    assert all(kept[one.id] == one for one in problems(made, "few"))  # as they were read
    tally = made.stage("few").tally
    assert tally.reasons == {"easy": 6, "low_level": 2, "hard_failed": 1}
    assert (tally.rows_in, tally.kept, tally.dropped, tally.errors, tally.owed) == (12, 3, 8, 1, 0)
    (failed,) = made.judged("few").filter("failed").iter_rows(named=True)
    assert (failed["reason"], failed["question"]) == ("hard_failed", "What is 3 + 21?")
    assert "nobody knows" in failed["detail"]
    assert [trace.problem for trace in made.traces("sampled")] == [one for one in problems(made, "few") for _ in (0, 1)]


async def test_a_filter_on_columns_of_problems_reads_their_columns(run_stages: RunStages) -> None:
    made = await run_stages(SOURCE + "  - {id: few, filter: [brief: {max: 15}]}\n", PROBLEMS)
    assert levels(made, "few") == [1, 3, 5, 7, 9]  # "What is 11 + 77?" has 16 characters
    assert made.stage("few").tally.reasons == {"easy": 4, "wordy": 3}
    details = made.judged("few").filter(reason="wordy")["detail"].to_list()
    assert details == ["16 characters"] * 3


async def test_filters_on_columns_and_on_rows_of_problems_stand_in_one_chain(run_stages: RunStages) -> None:
    made = await run_stages(SOURCE + "  - {id: few, filter: [brief: {max: 15}, hard: {level: 6}]}\n", PROBLEMS)
    assert levels(made, "few") == [7, 9]
    assert made.stage("few").tally.reasons == {"easy": 4, "wordy": 3, "hard_failed": 1, "low_level": 2}


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ("  - {id: few, filter: [thinking_closed]}\n", "'thinking_closed': it works on traces, and .* given problems"),
        (SAMPLED + "  - {id: few, filter: [hard]}\n", "filter 'hard': it works on problems, and .* given traces"),
        ("  - {id: few, filter: [verdict]}\n", "filter 'verdict': no stage above measures 'verdict'"),
        (SAMPLED + "  - {id: few, filter: [verdict]}\n", r"no stage above measures 'verdict' \(`verify:` does\)"),
        (
            SAMPLED + "  - {id: out, publish: dataset, with: {views: [raw, preference]}}\n",
            "'preference' needs traces with verdict or derivation, and no stage above makes them .`verify:` makes",
        ),
        # Nothing adds measures to problems yet.
        (
            "  - {id: few, select: best, with: {per: all, measure: level, best: lowest}}\n",
            "no stage above measures 'level'",
        ),
        (
            "  - {id: few, select: best, with: {per: all, measure: domain, best: lowest}}\n",
            "measure: 'domain' is no number",
        ),
        (
            "  - {id: few, select: best, with: {per: all, measure: context, best: lowest}}\n",
            "measure: 'context' is no number",
        ),
        (SAMPLED + "  - {id: few, select: best, with: {measure: style, best: lowest}}\n", "'style' is no number"),
        (
            SAMPLED + CHECKED + "  - {id: few, select: best, with: {measure: verdict, best: lowest}}\n",
            "'verdict' is no number",
        ),
        (
            "  - {id: checked, verify: auto}\n",
            "`verify:` takes traces, but stage 'problems' above it gives problems",
        ),
        ("  - {id: mixed, mix: long_short}\n", "`mix:` takes traces"),
        ("  - {id: cut, prune: after_answer}\n", "`prune:` takes traces"),
        ("  - {id: dataset, publish: dataset}\n", "`publish:` takes traces"),
    ],
)
async def test_what_does_not_fit_problems_is_refused_before_the_run(
    run_stages: RunStages, stages: str, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        await run_stages(SOURCE + stages, PROBLEMS, teacher={})


@pytest.mark.parametrize("between", ["", "  - {id: few, filter: [hard]}\n"])
async def test_a_prompt_about_traces_is_refused_for_problems(run_stages: RunStages, between: str) -> None:
    again = "  - {id: again, sample: chat, with: {model: teacher, prompt: again}}\n"
    with pytest.raises(UserError, match="prompt 'again' uses 'reasoning', which has no value"):
        await run_stages(SOURCE + between + again, PROBLEMS, teacher={})


async def test_problems_of_two_filters_are_sampled_once(run_stages: RunStages) -> None:
    two = """\
  - {id: high, filter: [hard: {level: 5}], from: problems}
  - {id: short, filter: [brief: {max: 15}], from: problems}
"""
    sampled = SAMPLED.replace("with:", "from: [high, short], with:")
    made = await run_stages(SOURCE + two + sampled, PROBLEMS, teacher={})
    union = {*levels(made, "high"), *levels(made, "short")}
    assert (levels(made, "high"), levels(made, "short")) == ([5, 7, 9, 11], [1, 3, 5, 7, 9])
    asked = Counter(json.loads(trace.problem.meta)["level"] for trace in made.traces("sampled"))
    assert asked == dict.fromkeys(union, 2)
    assert made.paid() == 2 * len(union)


async def test_a_problem_that_two_sources_hold_is_one_problem(run_stages: RunStages, tmp_path: Path) -> None:
    (tmp_path / "project" / "more.jsonl").write_text("".join(json.dumps(one) + "\n" for one in SUMS[8:]))
    more = SOURCE.replace("id: problems", "id: more").replace("problems.jsonl", "more.jsonl")
    both = "  - {id: few, filter: [brief: {max: 99}], from: [problems, more]}\n"
    made = await run_stages(SOURCE + more + both + SAMPLED, PROBLEMS, teacher={})
    assert levels(made, "few") == [1, 3, 5, 7, 9, 11]
    assert (made.stage("few").tally.rows_in, made.paid()) == (12, 12)


async def revised(run_stages: RunStages, role: str = "critiques") -> Made:
    critique = (
        f"  - {{id: revised, sample: chat, with: {{model: critic, prompt: critique, samples: 3, role: {role}}}}}\n"
    )
    teacher, critic = {"accuracy": 0.5}, {"seed": 1}
    return await run_stages(SOURCE + SAMPLED + CHECKED + critique, PROBLEMS, teacher=teacher, critic=critic)


@pytest.mark.parametrize("role", list(ParentRole))
async def test_traces_that_are_sampled_from_traces_name_their_parents(run_stages: RunStages, role: ParentRole) -> None:
    made = await revised(run_stages, role.value)
    parents = {trace.id: trace for trace in made.traces("checked")}
    children = made.traces("revised")
    assert Counter(trace.parents[0].id for trace in children) == dict.fromkeys(parents, 3)
    for trace in children:
        (parent,) = trace.parents
        assert (parent.role, parent.step) == (role, None)
        assert trace.parent(role) == parent.id
        assert trace.problem == parents[parent.id].problem
        assert (trace.stage, trace.teacher, trace.style, trace.prompt) == ("revised", "critic", "short", "critique")
        assert trace.verdict is None  # that is the parent's
        assert trace.measures == {}
    assert len({trace.id for trace in children}) == len({trace.request_key for trace in children}) == len(children)
    assert [made.stage(one).tally.rows_in for one in ("problems", "sampled", "checked", "revised")] == [12, 24, 24, 72]
    assert all(one.tally.kept == one.tally.rows_in for one in made.outcome.stages)
    assert made.paid() == 24 + 72


async def test_a_prompt_sees_the_trace_it_is_about(run_stages: RunStages) -> None:
    made = await revised(run_stages)
    parents = {trace.id: trace for trace in made.traces("checked")}
    outcomes = {trace.verdict.outcome for trace in parents.values() if trace.verdict}
    assert outcomes == {Outcome.CORRECT, Outcome.INCORRECT}
    paid = RequestStore(made.root)
    for trace in made.traces("revised"):
        parent = parents[trace.parents[0].id]
        assert parent.reasoning
        assert parent.verdict is not None
        (message,) = paid.get([trace.request_key])[trace.request_key]["request"]["messages"]
        assert message["content"] == (
            f"To {parent.problem.question} somebody thought [{parent.reasoning}] and said <{parent.answer_text}>; "
            f"it is {parent.verdict.outcome}, as\n2.0 samples were. What is 1 + 1?"
        )


async def test_only_traces_that_are_kept_are_revised(run_stages: RunStages) -> None:
    wrong = "  - {id: wrong, filter: [verdict: {keep: [incorrect]}]}\n"
    again = "  - {id: revised, sample: chat, with: {model: teacher, prompt: critique, samples: 1}}\n"
    checked_again = "  - {id: better, verify: auto}\n"
    stages = SOURCE + SAMPLED + CHECKED + wrong + again + checked_again
    made = await run_stages(stages, PROBLEMS, teacher={"accuracy": 0.5})
    wrong_ones = {trace.id for trace in made.traces("wrong")}
    assert 0 < len(wrong_ones) < 24
    assert {trace.parent(ParentRole.REVISES) for trace in made.traces("better")} == wrong_ones
    assert made.stage("better").tally.kept == len(wrong_ones)


async def test_traces_that_somebody_else_sampled_are_revised_too(run_stages: RunStages) -> None:
    raw = "  - {id: raw, source: traces, with: {paths: problems.jsonl, question: q, answer: a, model: someone}}\n"
    again = "  - {id: again, sample: chat, with: {model: teacher, prompt: again, samples: 2, role: continues}}\n"
    lines = "".join(line(f"<think>\nhm, {n}\n</think>\n\nIt is {n}.", str(n), f"Which is {n}?") for n in range(5))
    made = await run_stages(raw + again, lines, teacher={})
    parents = {trace.id: trace for trace in made.traces("raw")}
    assert Counter(trace.parent(ParentRole.CONTINUES) for trace in made.traces("again")) == dict.fromkeys(parents, 2)
    paid = RequestStore(made.root)
    for trace in made.traces("again"):
        parent = parents[trace.parents[0].id]
        (message,) = paid.get([trace.request_key])[trace.request_key]["request"]["messages"]
        assert f"thought [{parent.reasoning}] and said <{parent.answer_text}>" in message["content"]


LEVELS = """\
  - id: problems
    source: files
    with: {paths: problems.jsonl, question: q, answer: a, measures: {level: difficulty, votes: stats.votes}}
  - {id: hard, select: best, with: {measure: level, best: highest, n: 3, per: all}}
"""


async def test_measures_of_the_source_decide_which_problems_are_sampled(run_stages: RunStages) -> None:
    rows = [
        {"q": f"What is {n} + 1?", "a": str(n + 1), "difficulty": n % 7, "stats": {"votes": str(n)}} for n in range(20)
    ]
    rows[0]["difficulty"] = None
    text = (
        "".join(json.dumps(row) + "\n" for row in rows) + json.dumps({**rows[1], "q": "x", "difficulty": "hard"}) + "\n"
    )
    made = await run_stages(LEVELS, text)
    assert made.stage("problems").tally.reasons == {"no_number": 1}
    judged = made.judged("hard")
    kept = judged.filter("kept")
    assert sorted(kept["level"].to_list()) == [5.0, 6.0, 6.0]
    assert judged.filter(judged["reason"] == "not_measured").height == 1
    assert judged["votes"].max() == 19.0


async def test_the_same_problems_are_selected_however_the_rows_are_sharded(run_stages: RunStages) -> None:
    rows = "".join(
        json.dumps({"q": f"What is {n} + 1?", "a": "1", "difficulty": 1, "stats": {"votes": 1}}) + "\n"
        for n in range(50)
    )
    made = await run_stages(LEVELS, rows)
    assert (
        sorted(made.judged("hard").filter("kept")["id"]) == sorted(made.judged("hard")["id"])[:3]
    )  # ties: smaller ids
