"""A stage whose requests fail, or that keeps no row, stops the run with the cause; what was paid for is stored."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.stages.conftest import RunStages
from tracefactory.config import load_pipeline
from tracefactory.core.decisions import Judgement, Made, fail
from tracefactory.core.errors import RunError, RunStopped
from tracefactory.core.rows import Problem
from tracefactory.core.stage import Batch, Result
from tracefactory.engine.failing import Failing, check_shards
from tracefactory.engine.retry import LeftFailures
from tracefactory.engine.runs import load_outcome
from tracefactory.serving import dispatch
from tracefactory.store.stages import StageFolder

PROBLEMS = "".join(json.dumps({"question": f"What is {n} + 1?", "answer": str(n + 1)}) + "\n" for n in range(100))
SOURCE = "  - {id: problems, source: files, with: {paths: problems.jsonl}}\n"
ASKED = "  - {id: asked, sample: chat, with: {model: t, prompt: math_short, samples: 1, max_tokens: 64}%s}\n"
FEW = "".join(PROBLEMS.splitlines(keepends=True)[:12])


async def test_a_share_of_failures_above_the_limit_stops_the_run(run_stages: RunStages) -> None:
    script = {"rate_500": 0.3, "max_faults": 99}
    entry = {"retries": 0, "concurrency": 8}
    with pytest.raises(RunStopped) as stopped:
        await run_stages(SOURCE + ASKED % "", PROBLEMS, t={**script, "entry": entry})
    output = str(stopped.value)
    failed, asked = map(int, re.findall(r"asked: (\d+) of (\d+) requests failed", output)[0])
    assert 50 <= asked < 100
    assert failed > 0.2 * asked
    assert f"server_error {failed}" in output
    assert re.search(r"First messages: [0-9a-f]{12}: HTTP 500: a scripted failure", output)
    assert "To go on: tracefactory run pipelines/t.yaml" in output
    made = await run_stages(SOURCE + ASKED % ", run: {max_error_rate: 1}", PROBLEMS, t={"entry": entry})
    assert made.stage("asked").tally.kept == 100
    assert made.paid() < 100  # what was answered before the stop is stored


async def test_a_share_of_failures_below_the_limit_does_not(run_stages: RunStages) -> None:
    made = await run_stages(
        SOURCE + ASKED % "", PROBLEMS, t={"rate_500": 0.1, "max_faults": 99, "entry": {"retries": 0}}
    )
    tally = made.stage("asked").tally
    assert 0 < tally.owed == tally.errors < 20
    # The same rows are too many for a lower limit, whichever workers made them.
    (file,) = (made.root.parent / "pipelines").glob("*.yaml")
    pipeline = load_pipeline(file, sets=["run.max_error_rate=0.01"])
    folder = StageFolder(made.root, "asked", made.stage("asked").key)
    with pytest.raises(RunStopped, match=r"rows failed.*First messages: [0-9a-f]{12}: server_error: HTTP 500"):
        check_shards(pipeline.stage("asked"), pipeline, folder, [0, 1], 2, tally)


async def test_a_refused_key_stops_the_run_at_once(run_stages: RunStages) -> None:
    with pytest.raises(RunStopped, match=r"asked: t: HTTP 401.*check the key"):
        await run_stages(SOURCE + ASKED % "", PROBLEMS, t={"outage": {"after": 0, "requests": 999, "status": 401}})


@pytest.fixture
def port() -> Iterator[socket.socket]:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        yield one


@pytest.mark.parametrize("listens", [False, True])
async def test_an_address_where_nobody_answers_stops_the_run(
    run_stages: RunStages, monkeypatch: pytest.MonkeyPatch, port: socket.socket, listens: bool
) -> None:
    monkeypatch.setattr(dispatch, "FIRST_ANSWER_S", 0.2)
    if listens:  # connections are accepted, and nothing is ever read
        port.listen(64)
    url = f"http://127.0.0.1:{port.getsockname()[1]}/v1"
    model = f'  t: {{use: openai, model: m, base_url: "{url}", timeout_s: 0.2, price: {{input: 0, output: 0}}}}\n'
    with pytest.raises(RunStopped, match=r"has not answered once.*check `base_url:`"):
        await run_stages(SOURCE + ASKED % "", PROBLEMS, more_models=model)


async def test_a_server_that_fails_from_the_start_stops_the_run(
    run_stages: RunStages, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatch, "FIRST_ANSWER_S", 0.2)
    with pytest.raises(RunStopped, match=r"has not answered once.*HTTP 500"):
        await run_stages(SOURCE + ASKED % "", PROBLEMS, t={"rate_500": 1.0, "max_faults": 99})


async def test_a_server_that_dies_in_the_middle_stops_the_run_after_the_pause(run_stages: RunStages) -> None:
    dying = {"outage": {"after": 30, "requests": 9999, "status": 500}, "entry": {"max_pause_s": 0.5}}
    with pytest.raises(RunStopped, match=r"longer than max_pause_s: 0.5 .*the same command goes on"):
        await run_stages(SOURCE + ASKED % "", PROBLEMS, t=dying)
    made = await run_stages(SOURCE + ASKED % "", PROBLEMS, t={})
    assert (made.stage("asked").tally.kept, made.paid()) == (100, 70)


async def test_a_stage_that_keeps_nothing_stops_there_and_says_what_dropped_it(
    run_stages: RunStages, tmp_path: Path
) -> None:
    stages = SOURCE + ASKED % "" + "  - {id: short, filter: length, with: {max_tokens: 1}}\n"
    stages += "  - {id: paid, sample: chat, with: {model: t, prompt: math_short, samples: 1}}\n"
    for _ in range(2):  # the second time from its record
        with pytest.raises(RunError) as failed:
            await run_stages(stages, FEW, t={})
        output = str(failed.value)
        assert "short keeps none of its 12 rows, so nothing reaches paid. Reasons: too_long 12." in output
        assert re.search(r"too_long: \d+ tokens, at most 1", output)
        assert "filter 'length' {'max_tokens': 1}" in output
    outcome = load_outcome(tmp_path / "project" / ".tracefactory", finished=False)
    ends = {one.id: (one.done, one.failed, one.tally.reasons) for one in outcome.stages}
    assert (ends["asked"], ends["short"], ends["paid"][:2]) == (
        (True, False, {}),
        (False, True, {"too_long": 12}),
        (False, False),
    )


async def test_a_branch_without_rows_does_not_stop_the_others(run_stages: RunStages) -> None:
    stages = SOURCE + ASKED % "" + "  - {id: none, filter: length, with: {max_tokens: 1}}\n"
    made = await run_stages(stages + "  - {id: checked, verify: auto, from: [asked, none]}\n", FEW, t={})
    assert made.stage("checked").tally.kept == 12


def test_failed_rows_of_a_program_are_counted_and_verdicts_are_not(tmp_path: Path) -> None:
    folder = tmp_path / "pipelines"
    folder.mkdir()
    (tmp_path / "p.jsonl").write_text(FEW)
    (folder / "p.yaml").write_text(
        'name: p\nversion: "1"\nstages:\n  - {id: problems, source: files, with: {paths: p.jsonl}}\n'
    )
    pipeline, stops = load_pipeline(folder / "p.yaml"), list[RunError]()
    failing = Failing(pipeline, LeftFailures("owed"), stops.append)
    rows = [Problem.make(question=f"{n}?", answer="1", source="s", licence="", domain="") for n in range(60)]
    batch = Batch(problems=rows)
    failing.add_rows("problems", batch, Result(judged=[Judgement(one.id) for one in rows]))
    trace = "Traceback (most recent call last):\n  ...\nZeroDivisionError: division by zero"
    broken = [Judgement(one.id, fail("length_failed", trace, owed=False)) for one in rows[:20]]
    with pytest.raises(RunStopped, match=r"20 of 80 rows failed.*: ZeroDivisionError: division by zero\."):
        failing.add_rows("problems", batch, Result(judged=broken))
    assert len(stops) == 1
    sent = Failing(pipeline, LeftFailures("owed"), stops.append)
    not_sent = [Made(one, fail("not_sent", "the run sends no requests", owed=True)) for one in rows]
    sent.add_rows("problems", batch, Result(made=not_sent))
