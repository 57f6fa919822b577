"""Nothing at all, and far too much: an empty result or a clear refusal, never a traceback, and no row lost."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.unit.stages.conftest import RunStages
from tests.unit.stages.test_prune import trace
from tracefactory.config import load_pipeline
from tracefactory.core.errors import RunError, UserError
from tracefactory.core.rows import Outcome, Problem
from tracefactory.core.spans import Span
from tracefactory.engine.plan import make_plan
from tracefactory.publish.release import read_manifest
from tracefactory.sources.files import Files

SOURCE = "  - {id: problems, source: files, with: {paths: problems.jsonl, question: q, answer: a}}\n"
RAW = "  - {id: raw, source: traces, with: {paths: problems.jsonl, question: q, answer: a, model: someone}}\n"
SAMPLED = "  - {id: sampled, sample: chat, with: {model: teacher, prompt: math_long, samples: 2}}\n"
NOTHING = "  - {id: nothing, filter: [length: {max_characters: 1}]}\n"
CHECKED = "  - {id: checked, verify: auto}\n"
PUBLISHED = "  - {id: dataset, publish: dataset, with: {licence: mit, views: [VIEWS]}}\n"
SUMS = "".join(json.dumps({"q": f"What is {n} + {7 * n}?", "a": str(8 * n)}) + "\n" for n in range(4))


@pytest.mark.parametrize("source", [SOURCE, RAW])
@pytest.mark.parametrize(
    ("rows", "why"),
    [
        ("", "it is empty"),
        ("\n\n", "it is empty"),
        ("[]", "it is empty"),
        ('{"q": "", "a": "1"}\n', "no_question: line 1"),
        ('{"q": "1 + 1?", "a": " "}\n', "no_answer: line 1"),
        ('{"q": "1 + 1?", \n', "bad_json: line 1"),
        ("{}\n", "has no field 'q'"),
    ],
)
async def test_a_source_that_gives_nothing_is_refused_before_the_run(
    run_stages: RunStages, source: str, rows: str, why: str
) -> None:
    if source is RAW and rows.startswith("{"):
        rows = rows.replace("{", '{"response": "2", ', 1) if rows != "{}\n" else rows
    with pytest.raises(UserError, match=why):
        await run_stages(source + CHECKED.replace("}", ", from: raw}" if source is RAW else "}"), rows)


@pytest.mark.parametrize("source", ["files", "traces"])
async def test_a_source_without_any_row_stops_the_run(
    run_stages: RunStages, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    monkeypatch.setattr(Files, "check", lambda *given: [])  # as a file that was emptied since it was looked at
    stages, first = (SOURCE + SAMPLED, "problems") if source == "files" else (RAW, "raw")
    with pytest.raises(RunError, match=f"{first} has read no rows, so nothing reaches checked"):
        await run_stages(stages + CHECKED, "", teacher={})


async def test_a_last_stage_without_rows_ends_the_run(run_stages: RunStages) -> None:
    made = await run_stages(SOURCE + SAMPLED + NOTHING, SUMS, teacher={})
    assert made.stage("nothing").tally.reasons == {"too_long": 8}
    assert list(made.stage("nothing").rows(made.root).rows()) == []
    plan = make_plan(load_pipeline(made.root.parent / "pipelines" / "t.yaml"), made.root)
    assert {one.state for one in plan.stages} == {"cached"}
    assert plan.requests == 0


@pytest.mark.parametrize("views", ["sft, raw", "rlvr", "steps"])
@pytest.mark.parametrize("before", [NOTHING, CHECKED + "  - {id: mixed, mix: long_short}\n"])
async def test_a_dataset_without_rows_is_not_published(
    run_stages: RunStages, tmp_path: Path, before: str, views: str
) -> None:
    stages = SOURCE + SAMPLED + before + PUBLISHED.replace("VIEWS", views)
    with pytest.raises(RunError, match="so nothing reaches dataset"):
        await run_stages(stages, SUMS, teacher={})
    assert [path for path in (tmp_path / "project" / "out").rglob("*") if path.is_file()] == []


async def test_one_problem_may_have_thousands_of_traces(run_stages: RunStages, tmp_path: Path) -> None:
    lines = "".join(
        trace(f"Let me see, {n}.", f"It is \\boxed{{{n % 7}}}.", question="Which?", answer="3") for n in range(2000)
    )
    best = "  - {id: best, select: best, with: {measure: reasoning_characters, best: highest, n: 990}}\n"
    stages = RAW + CHECKED + best + PUBLISHED.replace("VIEWS", "raw")
    made = await run_stages(stages, lines + lines[: lines.index("\n") + 1] * 5)
    assert made.stage("raw").tally.reasons == {"duplicate": 5}
    checked = made.traces("checked")
    right = 286  # of the numbers below 2000, those that leave 3 when divided by 7
    assert sum(one.verdict is not None and one.verdict.outcome is Outcome.CORRECT for one in checked) == right
    assert {(one.measures["pass_samples"], one.measures["pass_rate"]) for one in checked} == {(2000, right / 2000)}
    (batch,) = made.stage("checked").rows(made.root).batches(Span.all(), 1)  # a problem is never torn apart
    assert len({one.id for one in batch.traces}) == 2000
    kept = made.traces("best")
    assert len(kept) == 990
    assert {len(one.reasoning) for one in kept} == {len("Let me see, 1000.")}
    assert read_manifest(tmp_path / "project" / "out" / "t" / "1").configs["raw"].rows == 990


@pytest.mark.filterwarnings("ignore:Sending a large body")  # aiohttp's, of bodies above 1 MiB
async def test_a_question_may_have_a_megabyte(run_stages: RunStages, tmp_path: Path) -> None:
    question = "wörd " * 200_000 + "What is 2 + 3?"
    rows = json.dumps({"q": question, "a": "5"}, ensure_ascii=False) + "\n" + SUMS
    stages = SOURCE + SAMPLED + CHECKED + PUBLISHED.replace("VIEWS", "sft, rlvr")
    made = await run_stages(stages, rows, teacher={})
    traces = made.traces("checked")
    assert [len(one.problem.question) for one in traces].count(len(question)) == 2
    assert {one.problem.question for one in traces if len(one.problem.question) > 99} == {question}
    assert {one.verdict and one.verdict.outcome for one in traces} == {Outcome.CORRECT}
    assert read_manifest(tmp_path / "project" / "out" / "t" / "1").configs["sft"].rows == 10


def test_ids_of_problems_do_not_collide() -> None:
    made = [Problem.make(question=f"What is {n}?", answer=str(n)) for n in range(50_000)]
    made += [Problem.make(question=f"What is {n}?", answer=None) for n in range(25_000)]
    made += [Problem.make(question=f"What is {n}", answer=f"?{n}") for n in range(25_000)]
    assert len({one.id for one in made}) == 100_000
    assert all(len(one.id) == 16 for one in made)


def test_the_id_of_a_problem_is_of_its_question_and_answer_alone() -> None:
    one = Problem.make(question="Which?", answer="a")
    other = Problem.make(
        question="Which?", answer="a", answers=("b",), domain="d", source="s", verifier="exact", meta="{}"
    )
    assert one.id == other.id
    told_apart = [
        ("Which?", "a"),
        ("Which?a", ""),
        ("Which?", "A"),
        ("Which? ", "a"),
        ("Which?", None),
        ("Which?", "null"),
    ]
    assert len({Problem.make(question=question, answer=answer).id for question, answer in told_apart}) == 6
