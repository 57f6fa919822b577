"""Batches of a shard: one straggler does not hold back the others, and rows are written in their order."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from tests.unit.stages.conftest import RunStages
from tracefactory.core.stage import Host, Result
from tracefactory.engine import shards
from tracefactory.stages.sample.chat import SampleChat

STAGES = """\
  - {id: problems, source: files, with: {paths: problems.jsonl, question: q, answer: a}}
  - {id: sampled, sample: chat, with: {model: teacher, prompt: math_short, samples: 1}}
"""
SUMS = "".join(json.dumps({"q": f"What is {n} + 1?", "a": str(n + 1)}) + "\n" for n in range(120))
SIZE = 4


async def test_batches_behind_a_straggler_are_begun_within_a_bound_and_written_in_order(
    run_stages: RunStages, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(shards.BATCH_PROBLEMS, Host.MODEL, SIZE)
    at_once = shards.BATCHES_AT_ONCE[Host.MODEL]
    begun: list[str] = []  # of the first of two shards
    ended: list[str] = []
    most = 0
    enough = asyncio.Event()
    real = SampleChat.run

    async def run(self: Any, stage: Any, batch: Any, services: Any) -> Result:
        nonlocal most
        first = batch.rows[0].id
        if int(first[0], 16) >= 8:
            return await real(self, stage, batch, services)
        begun.append(first)
        most = max(most, len(begun) - len(ended))
        if len(begun) == shards.KEPT * at_once:
            enough.set()
        if first == begun[0]:
            await asyncio.wait_for(enough.wait(), 30)
            await asyncio.sleep(0.2)
            assert len(begun) == shards.KEPT * at_once  # no more are begun before its rows are written
        made = await real(self, stage, batch, services)
        ended.append(first)
        return made

    monkeypatch.setattr(SampleChat, "run", run)
    made = await run_stages(STAGES, SUMS, teacher={})
    assert 1 < most <= at_once
    assert ended[0] != begun[0]
    assert begun == sorted(begun)
    problems = [one.problem_id for one in made.traces("sampled")]
    assert problems == sorted(problems)
    assert len(problems) == 120


@pytest.mark.parametrize(("concurrency", "rows"), [(1, 4096), (1000, 8000), (4000, 32_000), (100_000, 800_000)])
def test_shards_in_progress_have_rows_for_several_times_the_requests_in_flight(concurrency: int, rows: int) -> None:
    """With 8 shards of 512 problems, 4,000 requests in flight had no successors until a whole shard was finished."""
    found = shards.shards_in_progress(concurrency)
    assert found * shards.PROBLEMS_PER_SHARD >= rows
    assert found == 8 or (found - 1) * shards.PROBLEMS_PER_SHARD < rows
