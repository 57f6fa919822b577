"""Leases of shards in a shared state: one holder each, for as long as its run goes on, whatever goes wrong between."""

from __future__ import annotations

import asyncio
import json
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.unit.store.clouds import Cloud
from tracefactory.core.errors import Interrupted, RunError
from tracefactory.store.shared import leases
from tracefactory.store.shared.leases import EXPIRES_S, FREE, SharedLease
from tracefactory.store.shared.objects import Unreachable
from tracefactory.store.shared.shards import LivingRuns, Members, ShardLeases, lease_of_run

COUNT = 4


def begin(cloud: Cloud, run: str) -> ShardLeases:
    """Begin a run and return its leases of the shards of a stage."""
    cloud.create(f"leases/{lease_of_run(run)}.json", json.dumps({"run": run, "host": "h", "pid": 7}).encode())
    return ShardLeases(LivingRuns(cloud, run), "s-1", COUNT)


def lapse(cloud: Cloud, run: str, by_s: float = EXPIRES_S) -> None:
    """Let a run not have renewed its lease for some time."""
    name = f"leases/{lease_of_run(run)}.json"
    content, head = cloud.objects[name]
    cloud.objects[name] = (content, head._replace(modified=head.modified - by_s))


def test_a_shard_is_held_while_its_run_goes_on(cloud: Cloud) -> None:
    one, two = begin(cloud, "one"), begin(cloud, "two")
    assert one.take(0) is None
    assert one.take(0) is None  # it has it
    assert (one.held, one.inherited) == ({0}, set())
    held = two.take(0)
    assert held is not None
    assert (held.run, held.who) == ("one", "run one (process 7 on h)")
    assert two.take(1) is None
    lapse(cloud, "one", EXPIRES_S - 5)
    assert two.take(0) is not None
    cloud.replace("leases/runs/one.json", FREE, cloud.head("leases/runs/one.json").etag)  # it has ended
    assert two.take(0) is None
    assert two.inherited == {0}  # `one` may have paid for something
    two.end(1)
    assert two.held == {0}
    assert "leases/stages/s-1/00001-of-00004.json" not in cloud.objects


@pytest.mark.parametrize("skew", [-300.0, 300.0])
async def test_a_run_whose_lease_expired_is_ended_before_its_shard_is_taken(
    cloud: Cloud, skew: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    cloud.skew_s = skew  # the machines agree with each other, and not with the store
    monkeypatch.setattr(leases, "RENEW_S", 0.05)
    lost = asyncio.Event()
    slept = SharedLease(cloud, lease_of_run("slept"), "slept", pytest.fail, lambda why: lost.set())
    await slept.__aenter__()
    theirs, mine = ShardLeases(LivingRuns(cloud, "slept"), "s-1", COUNT), begin(cloud, "mine")
    assert theirs.take(0) is None
    assert mine.take(0) is not None
    assert slept._renewing is not None
    slept._renewing.cancel()
    lapse(cloud, "slept")
    assert mine.take(0) is None
    slept._renewing = asyncio.create_task(slept._renew())  # it wakes up
    await asyncio.wait_for(lost.wait(), 10)
    with pytest.raises(RunError, match="taken over by another run"):
        await slept.__aexit__(Interrupted, Interrupted(), None)
    assert theirs.take(0) is not None  # who lost it does not get it back
    assert mine.held == {0}


def test_a_run_that_is_renewed_meanwhile_is_not_ended(cloud: Cloud) -> None:
    one, two = begin(cloud, "one"), begin(cloud, "two")
    assert one.take(0) is None
    lapse(cloud, "one")
    name, replace = "leases/runs/one.json", cloud.replace

    def renewed_first(asked: str, content: bytes, etag: str) -> str | None:
        if asked == name:
            replace(name, cloud.objects[name][0] + b" ", cloud.objects[name][1].etag)
        return replace(asked, content, etag)

    cloud.replace = renewed_first  # type: ignore[method-assign, assignment]
    assert two.take(0) is not None


def test_of_many_that_want_the_shards_of_a_run_that_ended_one_gets_each(cloud: Cloud) -> None:
    dead = begin(cloud, "dead")
    for index in range(COUNT):
        assert dead.take(index) is None
    lapse(cloud, "dead")
    runs = [begin(cloud, f"run{number}") for number in range(6)]
    ready = threading.Barrier(len(runs))

    def take_all(run: ShardLeases) -> None:
        ready.wait(10)
        for index in range(COUNT):
            run.take(index)

    with ThreadPoolExecutor(len(runs)) as pool:
        list(pool.map(take_all, runs))
    for run in runs:
        for index in range(COUNT):
            run.take(index)
    assert sorted(index for run in runs for index in run.held) == list(range(COUNT))


@pytest.mark.parametrize("answer", ["lost", "refused", "torn", Unreachable("away")])
@pytest.mark.parametrize("how", ["create", "replace", "get"])
def test_a_fault_costs_no_shard_and_gives_none_to_two(cloud: Cloud, how: str, answer: Exception | str) -> None:
    dead, one, two = begin(cloud, "dead"), begin(cloud, "one"), begin(cloud, "two")
    assert dead.take(1) is None
    lapse(cloud, "dead")
    for index in (0, 1):  # a new one and one that is taken over
        cloud.faults[how] = [answer]
        for run in (one, two, one, two):
            try:
                run.take(index)
            except Unreachable:
                continue
        assert (index in one.held) + (index in two.held) <= 1
        for name in [name for name in cloud.objects if name.startswith("leases/stages")]:  # a torn one expires
            content, head = cloud.objects[name]
            cloud.objects[name] = (content, head._replace(modified=head.modified - EXPIRES_S))
        if index not in one.held | two.held:
            assert one.take(index) is None
        assert (index in one.held) + (index in two.held) == 1


@pytest.mark.parametrize(
    "content",
    [b"", b"nonsense", b"[]", b'{"run": 5}', b"\xff", b"[" * 100_000, b'{"run": "../../runs/one"}', b'{"run": ""}'],
)
def test_a_lease_of_nonsense_expires_by_itself(cloud: Cloud, content: bytes) -> None:
    name = "leases/stages/s-1/00000-of-00004.json"
    cloud.create(name, content)
    mine = begin(cloud, "mine")
    held = mine.take(0)
    assert held is not None
    assert (held.run, "lease is damaged" in held.who) == ("", True)
    cloud.objects[name] = (content, cloud.head(name)._replace(modified=cloud.now() - EXPIRES_S))
    assert mine.take(0) is None


def test_a_run_without_a_lease_has_ended_and_one_of_nonsense_expires(cloud: Cloud) -> None:
    cloud.create("leases/stages/s-1/00000-of-00004.json", b'{"run": "gone"}')
    cloud.create("leases/stages/s-1/00001-of-00004.json", b'{"run": "torn"}')
    cloud.create("leases/runs/torn.json", b'{"run": "to')
    mine = begin(cloud, "mine")
    assert mine.take(0) is None
    assert mine.take(1) is not None
    lapse(cloud, "torn")
    assert mine.take(1) is None


def test_runs_that_divide_a_stage_otherwise_are_in_the_way_while_they_go_on(cloud: Cloud) -> None:
    one, two = (Members(begin(cloud, run).runs, "s-1") for run in ("one", "two"))
    one.add(16)
    assert one.in_the_way(16) is None
    assert two.in_the_way(16) is None
    for count in (8, None):
        found = two.in_the_way(count)
        assert found is not None
        assert found.who == "run one (process 7 on h), which works on it in 16 shards"
    cloud.create("leases/members/s-1/nonsense", b"")
    cloud.create("leases/members/s-10/00004-one.json", FREE)  # another stage
    one.remove(16)
    assert two.in_the_way(8) is None
    one.add(4)
    lapse(cloud, "one")
    assert two.in_the_way(8) is None
    assert "leases/members/s-1/00004-one.json" not in cloud.objects


def test_asking_again_costs_one_request_for_a_run_and_no_clock(cloud: Cloud) -> None:
    one, two = begin(cloud, "one"), begin(cloud, "two")
    one.take(0)
    two.take(0)
    asked = len(cloud.asked)
    for _ in range(5):
        assert two.runs.holder("one") is not None
    assert cloud.asked[asked:] == [("get", "leases/runs/one.json")] * 5


@pytest.fixture
def cloud() -> Cloud:
    return Cloud()
