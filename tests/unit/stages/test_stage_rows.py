"""The rows of a stage, put together from the tables along its path: each once, the same however they are read."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import polars as pl
import pyarrow.parquet as pq
import pytest
from polars.testing import assert_frame_equal

from tests.unit.stages.conftest import ROOT, Made, RunStages
from tracefactory.config import load_pipeline
from tracefactory.core.errors import RunError
from tracefactory.core.rows import Outcome
from tracefactory.core.spans import Span
from tracefactory.core.tables import BUILT_IN
from tracefactory.engine.plan import make_plan
from tracefactory.store.rows import StageRows

STAGES = """\
  - {id: problems, source: files, with: {paths: problems.jsonl, question: q, answer: null}}
  - {id: sampled, sample: chat, with: {model: teacher, prompt: math_short, samples: 4}}
  - {id: checked, verify: auto, from: sampled}
  - {id: voted, verify: consensus, from: sampled}
  - {id: left, select: best, with: {measure: completion_tokens, best: lowest, n: 3}, from: checked}
  - {id: right, filter: [verdict], from: voted}
  - {id: joined, filter: [length: {min_characters: 1}], from: [left, right]}
  - {id: turned, filter: [length: {min_characters: 1}], from: [right, left]}
  - {id: solved, filter: [verdict], from: turned}
"""
SUMS = "".join(json.dumps({"q": f"What is {n} + {2 * n + 1}?"}) + "\n" for n in range(16))
TEACHER = {"accuracy": 0.6}


async def joined(run_stages: RunStages, more: str = "") -> Made:
    return await run_stages(STAGES + more, SUMS, teacher=TEACHER)


def ids(made: Made, stage: str) -> set[str]:
    found = [trace.id for trace in made.traces(stage)]
    assert len(set(found)) == len(found)
    return set(found)


def rows_of(made: Made, stage: str) -> StageRows:
    return made.stage(stage).rows(made.root)


async def test_a_row_that_comes_by_two_ways_is_one_row_with_the_columns_of_both(run_stages: RunStages) -> None:
    made = await joined(run_stages)
    left, right = ids(made, "left"), ids(made, "right")
    assert left & right
    assert left - right
    assert right - left
    assert ids(made, "joined") == ids(made, "turned") == left | right
    tally = made.stage("joined").tally
    assert (tally.rows_in, tally.kept) == (len(left | right), len(left | right))
    by_left, by_right = ({one.id: one for one in made.traces(stage)} for stage in ("left", "right"))
    for trace in made.traces("joined"):
        ways = [way[trace.id] for way in (by_left, by_right) if trace.id in way]
        assert ("consensus/margin" in trace.measures) == (trace.id in right)
        # What both ways say of a row is as the one of them says it whose id comes first.
        assert trace.measures == {**ways[-1].measures, **ways[0].measures}
        assert trace == ways[0].model_copy(update={"measures": trace.measures})


async def test_a_stage_is_given_the_values_that_are_read_back(run_stages: RunStages) -> None:
    made = await joined(run_stages)
    output = {
        trace.id: trace.verdict.outcome for stage in ("left", "right") for trace in made.traces(stage) if trace.verdict
    }
    assert set(output.values()) == {Outcome.UNVERIFIABLE, Outcome.CORRECT}  # of the shared rows each way says another
    assert made.traces("joined") == made.traces("turned")  # in whatever order they are written
    right = {trace.id for trace in made.traces("turned") if trace.verdict and trace.verdict.outcome is Outcome.CORRECT}
    assert ids(made, "solved") == right == ids(made, "right") - ids(made, "left")


async def test_a_plan_counts_the_requests_about_a_row_that_comes_by_two_ways_as_they_are_made(
    run_stages: RunStages, tmp_path: Path
) -> None:
    prompts = tmp_path / "project" / "prompts"
    shutil.copytree(ROOT / "prompts", prompts)
    (prompts / "again.md").write_text("---\nstyle: short\n---\n{{ question }} It is {{ verdict.outcome }}.\n")
    again = "  - {id: again, sample: chat, from: [right, left], with: {model: teacher, prompt: again, samples: 1}}\n"
    # A model with its own server: the key of a request to a foreign one would name another port in the plan.
    made = await run_stages(STAGES + again, SUMS, more_models="  teacher: {use: fake, script: {accuracy: 0.6}}\n")
    asked = made.stage("again").tally.rows_in
    shutil.rmtree(rows_of(made, "again").folder.path)
    plan = make_plan(load_pipeline(made.root.parent / "pipelines" / "t.yaml"), made.root)
    (to_pay,) = [one.to_pay for one in plan.stages if one.id == "again" and one.to_pay]
    assert to_pay.requests == 0
    assert asked == len(ids(made, "turned"))


async def test_a_row_that_one_way_dropped_comes_by_the_other_alone(run_stages: RunStages) -> None:
    none = "  - {id: nothing, filter: [length: {max_characters: 1}], from: checked}\n"
    some = "  - {id: rest, filter: [length: {min_characters: 1}], from: [nothing, right]}\n"
    made = await joined(run_stages, none + some)
    assert ids(made, "nothing") == set()
    assert made.traces("rest") == made.traces("right")


async def test_any_spans_give_the_rows_of_the_whole(run_stages: RunStages) -> None:
    made = await joined(run_stages)
    chance = random.Random(5)
    for stage in ("problems", "sampled", "joined"):
        rows = rows_of(made, stage)
        whole, problems = rows.frame(Span.all()), rows.problems(Span.all())
        assert whole.height > 15
        keys = rows.judged(Span.all(), frozenset()).drop("kept")
        assert keys.rows() == sorted(keys.rows())
        assert problems["id"].to_list() == sorted(set(whole["problem_id"]))
        edges = sorted(chance.randrange(1, 2**64) for _ in range(5))
        starts, ends = [0, *edges], [*(edge - 1 for edge in edges), 2**64 - 1]
        odd = [Span(f"{start:016x}", f"{end:016x}") for start, end in zip(starts, ends, strict=True)]
        for spans in (odd, [Span.of(index, 4) for index in range(4)], [Span.of(0, 2), Span.of(1, 2)]):
            assert_frame_equal(pl.concat([rows.frame(span) for span in spans]), whole)
            assert_frame_equal(pl.concat([rows.judged(span, frozenset()) for span in spans]).drop("kept"), keys)
            assert_frame_equal(pl.concat([rows.problems(span) for span in spans]), problems)
        assert [row for span in odd for batch in rows.batches(span, 3) for row in batch.rows] == list(rows.rows())


async def test_batches_hold_whole_problems_and_no_more_than_are_asked_for(run_stages: RunStages) -> None:
    made = await joined(run_stages)
    for stage, size in (("problems", 5), ("sampled", 5), ("joined", 1)):
        batches = list(rows_of(made, stage).batches(Span.all(), size))
        owners = [[row.id if stage == "problems" else row.problem_id for row in batch.rows] for batch in batches]
        assert all(len(set(found)) <= size for found in owners)
        assert len([one for found in owners for one in set(found)]) == 16  # no problem is in two batches


async def test_only_the_wanted_columns_are_read(run_stages: RunStages) -> None:
    made = await joined(run_stages)
    for stage in ("problems", "sampled", "joined"):
        rows = rows_of(made, stage)
        whole = rows.frame(Span.all())
        for name in whole.columns:
            keys = ["problem_id", "id"]
            found = rows.frame(Span.all(), [name, "no_such_column"])
            assert_frame_equal(found, whole.select(list(dict.fromkeys([*keys, name]))), check_column_order=False)
    rows = rows_of(made, "joined")
    assert rows.frame(Span.all(), ()).columns == ["problem_id", "id"]
    assert rows.columns.keys() == set(rows.frame(Span.all()).columns) - BUILT_IN
    assert rows.problems(Span.all(), ["question"]).columns == ["problem_id", "id", "question"]


async def test_text_is_not_read_where_it_is_not_wanted(run_stages: RunStages) -> None:
    made = await joined(run_stages)
    expected = rows_of(made, "joined").frame(Span.all(), ["completion_tokens", "pass_rate"])
    for part in rows_of(made, "sampled").folder.path.glob("traces-*"):
        part.write_bytes(_without(part, "answer_text"))
    rows = rows_of(made, "joined")
    assert_frame_equal(rows.frame(Span.all(), ["completion_tokens", "pass_rate"]), expected)
    with pytest.raises(RunError, match=r"traces-00000-of-00002.*fsck --repair"):
        rows.frame(Span.all(), ["answer_text"])


def _without(part: Path, column: str) -> bytes:
    """Return the bytes of a Parquet file with those of one column overwritten."""
    group = pq.read_metadata(part).row_group(0)
    chunks = [group.column(number) for number in range(group.num_columns)]
    (chunk,) = [one for one in chunks if one.path_in_schema == column]
    start = chunk.dictionary_page_offset or chunk.data_page_offset
    whole = part.read_bytes()
    return whole[:start] + b"\xff" * chunk.total_compressed_size + whole[start + chunk.total_compressed_size :]


def _exchange(parts: list[Path]) -> None:
    first, second = (part.read_bytes() for part in parts)
    parts[0].write_bytes(second)
    parts[1].write_bytes(first)


DAMAGES = {
    "exchanged": _exchange,
    "copied": lambda parts: shutil.copy(parts[0], parts[1]),
    "cut short": lambda parts: parts[0].write_bytes(parts[0].read_bytes()[:-10]),
    "empty": lambda parts: parts[0].write_bytes(b""),
    "deleted": lambda parts: parts[0].unlink(),
}


@pytest.mark.parametrize(("stage", "table"), [("sampled", "traces"), ("checked", "judged"), ("sampled", "judged")])
async def test_a_lost_or_damaged_file_is_named_and_made_again_for_free(
    run_stages: RunStages, stage: str, table: str
) -> None:
    made = await joined(run_stages)
    expected, folder = made.traces("joined"), rows_of(made, stage).folder.path
    kept = folder.with_name("kept")
    shutil.copytree(folder, kept)
    for damage in DAMAGES.values():
        damage(sorted(folder.glob(f"{table}-*")))
        with pytest.raises(RunError, match=f"{folder}/.*fsck --repair"):
            made.traces("joined")
        with pytest.raises(RunError, match=str(folder)):  # the stage counts as done, its rows cannot be had
            await joined(run_stages, "  - {id: more, filter: [verdict], from: joined}\n")
        shutil.rmtree(folder)
        shutil.copytree(kept, folder)
    shutil.rmtree(folder)
    again = await joined(run_stages)
    assert again.paid() == 0
    assert [one.id for one in again.outcome.stages if not one.cached] == [stage]
    assert again.traces("joined") == expected
