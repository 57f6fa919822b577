"""Dividing the shards of a stage between runs: each is done once, and what goes wrong with one run stops no other."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.unit.store.clouds import Cloud
from tracefactory.core.errors import Interrupted
from tracefactory.engine.dividing import Division
from tracefactory.store.records import with_checksum
from tracefactory.store.shared import leases
from tracefactory.store.shared.leases import EXPIRES_S, FREE
from tracefactory.store.shared.objects import Unreachable
from tracefactory.store.shared.shards import LivingRuns, ShardLeases, lease_of_run
from tracefactory.store.shared.stages import SharedStage
from tracefactory.store.stages import FOOTER_KEY, ShardRecord, Tally

AWAY = [Unreachable("away")] * 10_000


@pytest.fixture
def cloud(monkeypatch: pytest.MonkeyPatch) -> Cloud:
    monkeypatch.setattr(leases, "POLL_S", 0.02)
    return Cloud()


def judged(run: str, owed: int = 0) -> bytes:
    record = ShardRecord(run=run, inputs={}, digest="d", token="d", tally=Tally(owed=owed))
    footer = {FOOTER_KEY: json.dumps(with_checksum(record.model_dump(mode="json"))).encode()}
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({}).replace_schema_metadata(footer), sink)
    return bytes(sink.getvalue())


class Run:
    """A run that divides a stage with others; `made` are the shards that it did itself, `owed` what it leaves there."""

    def __init__(self, root: Path, name: str, cloud: Cloud, count: int, *, at_once: int = 2) -> None:
        self.name, self.cloud, self.count = name, cloud, count
        self.folder = root / name / "s-1"
        self.folder.mkdir(parents=True, exist_ok=True)
        cloud.create(f"leases/{lease_of_run(name)}.json", json.dumps({"run": name, "host": "h", "pid": 7}).encode())
        self.made: list[int] = []
        self.output: list[str] = []
        self.waits = asyncio.Event()
        self.logged: list[str] = []
        self.events: list[str] = []
        self.owed = 0
        self._pool = ThreadPoolExecutor(4)
        self._thread = ThreadPoolExecutor(1)
        self._turns = asyncio.Semaphore(at_once)
        self.stage = SharedStage(self.folder, cloud, lambda: self.events.append("completions"))
        self.leases = ShardLeases(LivingRuns(cloud, name), "s-1", count)

    def division(self) -> Division:
        self.stage.pull()
        return Division(
            self.stage, self.leases, self._in(self._thread), self._in(self._pool), self._catch_up, self._tell,
            self.logged.append,
        )  # fmt: skip

    def _in(self, pool: ThreadPoolExecutor) -> Callable[..., Any]:
        return lambda work, *arguments: asyncio.get_running_loop().run_in_executor(pool, work, *arguments)

    def _tell(self, text: str) -> None:
        self.output.append(text)
        self.waits.set()

    async def _catch_up(self) -> None:
        self.events.append("catch up")

    async def work(self, division: Division, index: int, takes_s: float = 0.0, before: Any = None) -> None:
        async with division.shard(index, lambda record, fresh: fresh or not record.tally.owed, (self._turns,)) as here:
            if here:
                self.made.append(index)
                if before is not None:
                    await before()
                await asyncio.sleep(takes_s)
                (self.folder / f"judged-{index:05d}-of-{self.count:05d}.parquet").write_bytes(
                    judged(self.name, self.owed)
                )

    async def __call__(self, takes_s: float = 0.0) -> None:
        async with self.division() as division:
            await asyncio.gather(*(self.work(division, index, takes_s) for index in range(self.count)))

    async def sync(self, division: Division) -> None:
        """Put what is finished every few moments, as a run does."""
        while True:
            await asyncio.sleep(0.05)
            with suppress(Unreachable):
                await self._in(self._thread)(division.push)

    def have(self) -> list[bytes]:
        return [path.read_bytes() for path in sorted(self.folder.glob("judged-*"))]


def lapse(cloud: Cloud, run: str) -> None:
    name = f"leases/{lease_of_run(run)}.json"
    content, head = cloud.objects[name]
    cloud.objects[name] = (content, head._replace(modified=head.modified - EXPIRES_S))


async def test_a_thousand_shards_cost_a_few_requests_each_and_none_is_done_twice(
    tmp_path: Path, cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "POLL_S", 0.5)
    count = 1000
    one, two = (Run(tmp_path, name, cloud, count, at_once=8) for name in ("one", "two"))
    async with asyncio.timeout(60):
        await asyncio.gather(one(), two())
    assert sorted(one.made + two.made) == list(range(count))
    assert one.have() == two.have()
    asked = Counter(how for how, _ in cloud.asked)
    files = count  # one of each shard
    assert asked["create"] <= 2 * count + files + 10  # either of both tries the lease, and the file is put
    assert asked["replace"] <= 50
    assert asked["delete"] == count
    assert asked["head"] <= 2 * count + files + 500  # a look at the manifest for a lease, and at what was put
    assert asked["get"] <= 3 * count + 500  # who holds a lease, and whether that run goes on; the file of the other
    assert asked["list"] == 0


async def test_a_run_alone_pays_one_lease_for_each_shard_and_looks_for_nobody(tmp_path: Path, cloud: Cloud) -> None:
    count = 64
    one = Run(tmp_path, "one", cloud, count, at_once=8)
    await one()
    asked = Counter(how for how, name in cloud.asked if name.startswith("leases/stages"))
    assert asked == {"create": count, "delete": count}
    await one()  # everything is there
    assert sorted(one.made) == list(range(count))
    assert Counter(how for how, name in cloud.asked if name.startswith("leases/stages")) == asked


async def test_a_shard_of_a_run_that_dies_is_taken_over_after_catching_up(tmp_path: Path, cloud: Cloud) -> None:
    dead, mine = Run(tmp_path, "dead", cloud, 4), Run(tmp_path, "mine", cloud, 4)
    assert dead.leases.take(2) is None
    task = asyncio.create_task(mine())
    async with asyncio.timeout(10):
        await mine.waits.wait()
        assert mine.output == [
            "s-1: waiting for run dead (process 7 on h) to finish 1 shard, until it ends or shows no sign of life for "
            "60 s"
        ]
        assert sorted(mine.made) == [0, 1, 3]
        lapse(cloud, "dead")
        await task
    assert mine.made[-1] == 2
    assert mine.events.count("catch up") == 1
    assert cloud.objects["leases/runs/dead.json"][0] == b"{}"


async def test_what_is_not_finished_is_held_until_the_run_has_put_what_it_paid_for(
    tmp_path: Path, cloud: Cloud
) -> None:
    one, two = Run(tmp_path, "one", cloud, 2), Run(tmp_path, "two", cloud, 2)

    async def interrupted() -> None:
        raise Interrupted

    async with one.division() as division:
        await one.work(division, 0)
        with pytest.raises(Interrupted):
            await one.work(division, 1, before=interrupted)
    async with asyncio.timeout(10):
        task = asyncio.create_task(two())
        await two.waits.wait()
        assert two.made == []
        name = f"leases/{lease_of_run('one')}.json"
        cloud.replace(name, FREE, cloud.head(name).etag)  # the end of the run
        await task
    assert two.made == [1]
    assert two.events[0] == "catch up"


async def test_what_cannot_be_put_is_held_until_the_run_ends(tmp_path: Path, cloud: Cloud) -> None:
    one, two = Run(tmp_path, "one", cloud, 2), Run(tmp_path, "two", cloud, 2)
    async with one.division() as division:
        await one.work(division, 0)
        assert division.is_put is False
        cloud.faults["create"] = list(AWAY)
    cloud.faults.clear()
    assert one.logged == ["away"]
    assert division.is_put is False
    task = asyncio.create_task(two())
    await asyncio.sleep(0.2)
    assert two.made == [1]
    division.push()  # as the run tries from time to time
    await asyncio.wait_for(task, 10)
    assert two.made == [1]
    assert two.have() == [judged("one"), judged("two")]


async def test_a_store_that_is_away_is_waited_for(tmp_path: Path, cloud: Cloud) -> None:
    one, two = Run(tmp_path, "one", cloud, 8), Run(tmp_path, "two", cloud, 8)

    async def goes_away() -> None:
        for how in ("head", "get", "create", "replace"):
            cloud.faults[how] = [Unreachable("away")] * 5

    async with asyncio.timeout(30), one.division() as first, two.division() as second:
        both = ((one, first), (two, second))
        syncing = [asyncio.create_task(run.sync(division)) for run, division in both]
        jobs = [run.work(division, index, 0.01, goes_away) for index in range(8) for run, division in both]
        await asyncio.gather(*jobs)
        for task in syncing:
            task.cancel()
    cloud.faults.clear()
    assert sorted(one.made + two.made) == list(range(8))
    assert one.have() == two.have()


async def test_who_waits_is_interrupted_when_the_run_is_stopped(tmp_path: Path, cloud: Cloud) -> None:
    other, one = Run(tmp_path, "other", cloud, 1), Run(tmp_path, "one", cloud, 1)
    other.leases.take(0)
    async with one.division() as division:
        task = asyncio.create_task(one.work(division, 0))
        await asyncio.sleep(0.1)
        division.stop()
        with pytest.raises(Interrupted):
            await asyncio.wait_for(task, 10)
        with pytest.raises(Interrupted):
            await one.work(division, 0)
    assert one.made == []


async def test_a_defect_while_others_are_looked_at_ends_those_who_wait(tmp_path: Path, cloud: Cloud) -> None:
    other, one = Run(tmp_path, "other", cloud, 1), Run(tmp_path, "one", cloud, 1)
    other.leases.take(0)
    async with one.division() as division:
        task = asyncio.create_task(one.work(division, 0))
        await asyncio.sleep(0.1)
        cloud.faults["head"] = [KeyError("a defect")]
        cloud.faults["get"] = [KeyError("a defect")]
        with pytest.raises(KeyError, match="a defect"):
            await asyncio.wait_for(task, 10)
        cloud.faults.clear()


async def test_rows_owed_are_tried_again_by_one_run_and_had_by_all(tmp_path: Path, cloud: Cloud) -> None:
    before = Run(tmp_path, "before", cloud, 4)
    before.owed = 1
    await before()
    one, two, late = (Run(tmp_path, name, cloud, 4) for name in ("one", "two", "late"))
    one.owed = two.owed = 1  # also after this
    async with asyncio.timeout(10):
        await asyncio.gather(one(0.05), two(0.05))
    assert sorted(one.made + two.made) == [0, 1, 2, 3]
    assert one.have() == two.have()
    assert judged("before", 1) not in one.have()
    await asyncio.wait_for(late(), 10)
    assert sorted(late.made) == [0, 1, 2, 3]
    assert late.have() == [judged("late")] * 4
