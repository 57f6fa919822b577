"""Requests of a model stay in flight while any row is left, and shards end one after the other."""

from __future__ import annotations

import asyncio
import random
from functools import partial
from typing import Any

import pytest

from tests.unit.stages.conftest import RunStages
from tracefactory.engine.backlog import FEWEST_ROWS, Backlog
from tracefactory.engine.worker import Worker
from tracefactory.store.claims import Claim, Claims

MOST, SHARDS, BATCHES, ROWS = 600, 6, 8, 64


async def settled() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


class Asked:
    """Shards of batches, each row of which asks `samples` times; answers come roughly in the order of the requests."""

    def __init__(self, backlog: Backlog, samples: int) -> None:
        self.backlog, self.samples = backlog, samples
        self.in_flight: list[asyncio.Future[None]] = []
        self.begun: list[tuple[int, int]] = []
        self.left = SHARDS * BATCHES * ROWS * samples

    async def request(self) -> None:
        async with self.backlog.slot():
            self.in_flight.append(asyncio.get_running_loop().create_future())
            self.left -= 1
            await self.in_flight[-1]

    async def batch(self, shard: int, number: int) -> None:
        self.begun.append((shard, number))
        await asyncio.sleep(0)  # the store is looked up
        await asyncio.gather(*(self.request() for _ in range(ROWS * self.samples)))

    async def shard(self, number: int) -> None:
        place = self.backlog.shard()
        tasks = [await self.backlog.begin(place, ROWS, partial(self.batch, number, at)) for at in range(BATCHES)]
        await asyncio.gather(*tasks)


@pytest.mark.parametrize("samples", [1, 4])
async def test_requests_are_in_flight_as_long_as_rows_are_left(samples: int) -> None:
    """In one queue of all shards, all of them waited for their last answers at once, and a third was in flight."""
    backlog, chance = Backlog(MOST), random.Random(1)
    asked = Asked(backlog, samples)
    shards = [asyncio.create_task(asked.shard(number)) for number in range(SHARDS)]
    unsent: list[int] = []  # requests, when each shard ended
    for shard in shards:
        shard.add_done_callback(lambda _: unsent.append(asked.left))
    await settled()
    longest = 0
    while not all(shard.done() for shard in shards):
        assert len(asked.in_flight) == MOST or asked.left == 0
        waiting = len(asked.begun) * ROWS * samples - (SHARDS * BATCHES * ROWS * samples - asked.left)
        longest = max(longest, waiting)
        for _ in range(50):
            if asked.in_flight:
                asked.in_flight.pop(chance.randrange(min(MOST // 8, len(asked.in_flight)))).set_result(None)
        await settled()
    assert longest < MOST + max(MOST, FEWEST_ROWS) * samples + ROWS * samples  # texts of others are not held
    last = [asked.begun.index((shard, BATCHES - 1)) for shard in range(SHARDS)]
    assert last == sorted(last)
    assert unsent[0] > BATCHES * ROWS * samples


async def test_batches_that_ask_nothing_or_fail_hold_nobody_back() -> None:
    backlog = Backlog(1)

    async def nothing() -> None:
        await asyncio.sleep(0)

    async def fails() -> None:
        raise ValueError("a row that cannot be read")

    place = backlog.shard()
    for work in [nothing, fails] * (2 * FEWEST_ROWS // ROWS):
        task = await asyncio.wait_for(backlog.begin(place, ROWS, work), 10)
        await asyncio.wait([task])
        assert (task.exception() is None) is (work is nothing)


async def test_batches_that_first_ask_another_model_are_begun_all_the_same() -> None:
    own, other = Backlog(1), Backlog(1)
    place, asked = own.shard(), []

    async def asks(number: int) -> None:
        for backlog in (other, own):
            async with backlog.slot():
                asked.append(number)

    numbers = range(4 * FEWEST_ROWS // ROWS)
    tasks = [await asyncio.wait_for(own.begin(place, ROWS, partial(asks, number)), 10) for number in numbers]
    await asyncio.wait_for(asyncio.gather(*tasks), 10)
    assert sorted(asked) == sorted([*numbers, *numbers])


async def test_a_cancelled_turn_is_given_to_the_next() -> None:
    backlog = Backlog(1)
    hold = asyncio.Event()

    async def holds() -> None:
        async with backlog.slot():
            await hold.wait()

    async def waits() -> None:
        async with backlog.slot():
            pass

    tasks = [await backlog.begin(0, ROWS, holds), await backlog.begin(0, ROWS, waits)]
    await settled()
    turns = [asyncio.create_task(backlog.begin(shard, ROWS, waits)) for shard in (1, 2)]
    await settled()
    assert not any(turn.done() for turn in turns)
    turns[0].cancel()
    hold.set()
    await asyncio.wait_for(asyncio.gather(await turns[1], *tasks), 10)
    assert turns[0].cancelled()


async def test_requests_that_another_process_sends_are_counted_apart(
    run_stages: RunStages, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that died on another host holds its requests for a minute: the stage looked as if nothing was left."""
    workers: list[Worker] = []
    counts: list[float] = []
    held: set[str] = set()
    take = Claims.take

    async def run_shard(self: Worker, *given: Any) -> Any:
        workers.append(self)
        return await real(self, *given)

    def claim(self: Claims, key: str) -> Claim:
        counts.append(workers[0].numbers["sampled"]["elsewhere"])
        if key in held:
            return take(self, key)
        held.add(key)
        return Claim.HELD

    real = Worker.run_shard
    monkeypatch.setattr(Worker, "run_shard", run_shard)
    monkeypatch.setattr(Claims, "take", claim)
    stages = """\
  - {id: problems, source: files, with: {paths: problems.jsonl, question: q, answer: a}}
  - {id: sampled, sample: chat, with: {model: teacher, prompt: math_short, samples: 4}}"""
    made = await run_stages(stages, '{"q": "What is 1 + 2?", "a": "3"}\n', teacher={})
    assert made.stage("sampled").tally.kept == 4
    assert len(held) == 4
    assert 1 <= max(counts) <= 4
    assert workers[0].numbers["sampled"]["elsewhere"] == 0
