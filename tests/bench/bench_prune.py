"""Pruning in ratios within one run: student calls against a linear scan, batching, and time against text length."""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.unit.stages.conftest import unwatched
from tracefactory.config import load_pipeline
from tracefactory.core.rows import Outcome, Problem, Thinking, Trace, Verdict
from tracefactory.engine.run import run_pipeline
from tracefactory.pruners.binary_cut import BinaryCut
from tracefactory.pruning import ConcludeItem, Conclusion, PruneItem, Tools
from tracefactory.serving.fake_script import FakeScript
from tracefactory.serving.fake_server import FakeServer
from tracefactory.text.steps import segment

TRACES = Path(__file__).parents[2].parent / "shared" / "data" / "traces" / "aime25_long_cot.jsonl"
STEP = "Then we add 7 to what we have and look at the next of the numbers.\n\n"
REQUEST, ROW = 0.02, 0.0005  # seconds: a forward pass costs most of its time once, whatever the batch
pytestmark = pytest.mark.bench


class TimedStudent:
    """A student that is right once it has seen a given number of characters, and takes a batch's time to say so."""

    def __init__(self, needed: dict[str, int]) -> None:
        self.needed, self.asked = needed, 0

    async def conclude(self, items: Sequence[ConcludeItem]) -> list[Conclusion]:
        self.asked += len(items)
        await asyncio.sleep(REQUEST + ROW * len(items))
        return [Conclusion(text="right" if len(item.reasoning) >= self.needed[item.id] else "wrong") for item in items]

    async def judge(self, items: Sequence[ConcludeItem]) -> list[Conclusion]:
        return await self.conclude(items)

    async def extend(self, items: Sequence[ConcludeItem]) -> list[Conclusion]:
        return await self.conclude(items)


async def verify(pairs: list[tuple[Problem, str]]) -> list[Verdict]:
    return [
        Verdict(
            outcome=Outcome.CORRECT if text == "right" else Outcome.INCORRECT, method="t", verifier="t", version="1"
        )
        for _, text in pairs
    ]


def item(name: str, reasoning: str) -> PruneItem:
    problem = Problem.make(question="Q", answer="1", verifier="t")
    return PruneItem.of(Trace(id=name, problem=problem, reasoning=reasoning, thinking=Thinking.CLOSED))


def test_student_calls_against_the_linear_scan() -> None:
    """A scan asks once per step up to the first that suffices, which here lies nine tenths into the trace."""
    items = [item(str(steps), STEP * steps) for steps in (20, 50, 100, 200, 400, 800)]
    student = TimedStudent({one.trace.id: int(len(one.trace.reasoning) * 0.9) for one in items})
    results = asyncio.run(BinaryCut().prune(items, Tools(verify, student)))
    for one, result in zip(items, results, strict=True):
        scan = len(result.kept)
        print(f"{len(one.steps):4d} steps: {result.calls:2d} calls, scan {scan:3d}, ratio {scan / result.calls:.1f}")
    assert sum(len(result.kept) for result in results) / student.asked > 10


def test_many_traces_together_against_one_at_a_time() -> None:
    """With a student whose batches cost mostly their first row, lockstep wins by about the batch size."""
    items = [item(str(number), STEP * (30 + number)) for number in range(32)]
    needed = {one.trace.id: int(len(one.trace.reasoning) * 0.4) for one in items}

    async def alone() -> None:
        for one in items:
            await BinaryCut().prune([one], Tools(verify, TimedStudent(needed)))

    start = time.perf_counter()
    asyncio.run(BinaryCut().prune(items, Tools(verify, TimedStudent(needed))))
    together = time.perf_counter() - start
    start = time.perf_counter()
    asyncio.run(alone())
    ratio = (time.perf_counter() - start) / together
    print(f"one at a time / together: {ratio:.1f}")
    assert ratio >= 4


PIPELINE = """\
name: bench
version: "1"
models: {{student: {{use: openai, model: student, base_url: "{url}", concurrency: {concurrency}}}}}
stages:
  - {{id: raw, source: traces, with: {{paths: traces.jsonl, question: q, answer: a}}}}
  - {{id: cut, prune: binary_cut, with: {{model: student}}}}
run: {{executor: inline, shards: 4, workers: 1}}
"""


def stage_seconds(root: Path, concurrency: int) -> float:
    """Run the stage in a project of its own against a served student and return its wall time."""
    (root / "pipelines").mkdir(parents=True)
    (root / "filters").mkdir()
    (root / "prompts").symlink_to(Path(__file__).parents[2] / "prompts")
    rows = [
        {"q": f"What is {n} + 1?", "a": str(n + 1), "response": f"<think>{STEP * (20 + n)}</think>It is {n + 1}."}
        for n in range(16)
    ]
    (root / "traces.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    async def run() -> float:
        # Never right, so that every search goes all the way.
        async with FakeServer(FakeScript(reply="It is \\boxed{0}.", latency_s=10 * REQUEST)) as server:
            pipeline = root / "pipelines" / "bench.yaml"
            pipeline.write_text(PIPELINE.format(url=server.base_url, concurrency=concurrency))
            outcome = await run_pipeline(load_pipeline(pipeline), unwatched)
            return outcome.stages[-1].paid["seconds"]

    return asyncio.run(run())


def test_a_stage_that_asks_for_all_traces_against_one_request_at_a_time(tmp_path: Path) -> None:
    """The served student has the same latency either way; requests of all traces are in flight together."""
    together, alone = (stage_seconds(tmp_path / str(limit), limit) for limit in (64, 1))
    print(f"one request at a time / together: {alone / together:.1f}")
    assert alone / together >= 4


def test_segmentation_is_linear_in_the_text() -> None:
    """Four times the text takes about four times the time, for prose and for a trace that loops."""
    for unit in (STEP, "Wait, 15840 ÷ 1440 = 11. ", "6 * 7 = "):
        seconds = []
        for size in (40_000, 160_000):
            text = unit * (size // len(unit))
            runs = []
            for _ in range(3):
                start = time.process_time()
                segment(text)
                runs.append(time.process_time() - start)
            seconds.append(statistics.median(runs))
        print(f"{unit[:12]!r}: {seconds[1] / max(seconds[0], 1e-4):.1f} times for 4 times the text")
        assert seconds[1] < 8 * max(seconds[0], 0.005)


@pytest.mark.skipif(not TRACES.exists(), reason="needs the shared traces")
def test_segmentation_of_the_longest_real_trace_against_plain_prose() -> None:
    """Real markup costs a small factor over sentences without any."""
    text = max((json.loads(line)["response"] for line in TRACES.read_text().splitlines()), key=len)
    seconds = []
    for one in (STEP * (len(text) // len(STEP)), text):
        start = time.process_time()
        segment(one)
        seconds.append(time.process_time() - start)
    print(f"{len(text)} characters: {seconds[1] / seconds[0]:.1f} times plain prose, {seconds[1]:.2f} s")
    assert seconds[1] < 5 * seconds[0]
