"""Leases in a shared state: one holder, ended by its end or by the clock of the store, whatever goes wrong between."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from tests.unit.store.clouds import Cloud
from tracefactory.core.errors import Interrupted, RunError
from tracefactory.store.shared import leases
from tracefactory.store.shared.leases import SharedLease, clock_of
from tracefactory.store.shared.objects import Unreachable

NAME = "leases/stages/s.json"


@pytest.fixture
def cloud(monkeypatch: pytest.MonkeyPatch) -> Cloud:
    monkeypatch.setattr(leases, "RENEW_S", 0.05)
    monkeypatch.setattr(leases, "EXPIRES_S", 0.6)
    monkeypatch.setattr(leases, "POLL_S", 0.05)
    return Cloud()


def lease(cloud: Cloud, run: str, output: list[str] | None = None, **options: Any) -> SharedLease:
    output = [] if output is None else output
    return SharedLease(cloud, "stages/s", run, output.append, output.append, **options)


async def is_free(cloud: Cloud, within_s: float, run: str = "mine") -> bool:
    try:
        async with asyncio.timeout(within_s):
            async with lease(cloud, run):
                return True
    except TimeoutError:
        return False


async def kill(held: SharedLease) -> None:
    """End the holder as kill -9 does: nothing is given back."""
    assert held._renewing is not None
    held._renewing.cancel()
    await asyncio.gather(held._renewing, return_exceptions=True)


@pytest.mark.parametrize("skew", [-300.0, 300.0])
async def test_it_is_waited_for_given_back_and_taken_over_when_its_holder_died(cloud: Cloud, skew: float) -> None:
    cloud.skew_s = skew  # the machines agree with each other, and not with the store
    output: list[str] = []
    held = lease(cloud, "theirs")
    async with held:
        async with asyncio.timeout(10):
            waiting = asyncio.create_task(lease(cloud, "mine", output).__aenter__())
            await asyncio.sleep(1.0)  # longer than it takes to expire: it is renewed
            assert not waiting.done()
    mine = await asyncio.wait_for(waiting, 10)
    assert len(output) == 1
    assert "run theirs (process" in output[0]
    await kill(mine)
    assert not await is_free(cloud, 0.3, "third")
    assert await is_free(cloud, 10, "third")


async def test_of_several_that_try_at_once_one_holds_it_at_a_time(cloud: Cloud) -> None:
    holders = most = 0

    async def work(number: int) -> None:
        nonlocal holders, most
        async with lease(cloud, f"run{number}"):
            holders += 1
            most = max(most, holders)
            await asyncio.sleep(0.02)
            holders -= 1

    dead = lease(cloud, "dead")
    await dead.__aenter__()
    await kill(dead)
    async with asyncio.timeout(30):
        await asyncio.gather(*map(work, range(6)))
    assert most == 1


async def test_a_holder_that_slept_through_its_time_learns_that_it_lost_it(cloud: Cloud) -> None:
    lost = asyncio.Event()
    held = SharedLease(cloud, "stages/s", "theirs", pytest.fail, lambda why: lost.set())
    await held.__aenter__()
    cloud.replace(NAME, b'{"run": "other", "host": "h", "pid": 1}', cloud.head(NAME).etag)
    await asyncio.wait_for(lost.wait(), 10)
    with pytest.raises(RunError, match="taken over by another run"):
        await held.__aexit__(Interrupted, Interrupted(), None)  # as the run is stopped
    assert json.loads(cloud.get(NAME)[0])["run"] == "other"  # not given back by who lost it


async def test_a_holder_that_cannot_renew_stops_before_another_may_take_it(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "EXPIRES_S", 3.0)  # it stops a second before, also on a busy machine
    monkeypatch.setattr(leases, "RENEW_S", 1.0)
    lost = asyncio.Event()
    held = SharedLease(cloud, "stages/s", "theirs", pytest.fail, lambda why: lost.set())
    await held.__aenter__()
    cloud.faults["replace"] = [Unreachable("away")] * 1000
    await asyncio.wait_for(lost.wait(), 10)
    assert cloud.now() - cloud.head(NAME).modified < leases.EXPIRES_S
    with pytest.raises(RunError, match="could not be renewed in time"):
        await held.__aexit__(None, None, None)


async def test_short_faults_and_lost_answers_cost_no_lease(cloud: Cloud) -> None:
    output: list[str] = []
    cloud.faults["create"] = ["lost"]
    async with lease(cloud, "theirs", output):
        cloud.faults["replace"] = [Unreachable("away"), "lost", "refused", Unreachable("away"), "refused", "lost"]
        await asyncio.sleep(0.5)
        assert not await is_free(cloud, 0.5)
    assert output == []
    assert await is_free(cloud, 5)


@pytest.mark.parametrize("content", [b"", b"nonsense", b"[]", b'{"run": 5}', b"\xff"])
async def test_a_damaged_lease_expires(cloud: Cloud, content: bytes) -> None:
    cloud.create(NAME, content)
    assert not await is_free(cloud, 0.2)
    assert await is_free(cloud, 10)


async def test_a_ledger_is_not_waited_for_while_its_holder_lives(cloud: Cloud) -> None:
    async with lease(cloud, "theirs"), asyncio.timeout(10):
        with pytest.raises(RunError, match=r"run theirs .* spends from the same ledger"):
            async with lease(cloud, "mine", waits=False):
                pass
    dead = lease(cloud, "dead")
    await dead.__aenter__()
    await kill(dead)
    async with asyncio.timeout(10), lease(cloud, "mine", waits=False):
        pass


def test_the_clock_is_that_of_the_store_whatever_it_refuses(cloud: Cloud) -> None:
    assert cloud.now() - clock_of(cloud, "mine") < 60
    cloud.skew_s = 3600.0
    cloud.faults["replace"] = ["refused"]
    assert cloud.now() - clock_of(cloud, "mine") < 60  # not the time of the write before
    cloud.faults["create"] = ["refused", "lost"]
    assert cloud.now() - clock_of(cloud, "new") < 60
    cloud.faults["create"] = ["refused"] * 100
    with pytest.raises(Unreachable, match=r"clocks/never was written 5 times"):
        clock_of(cloud, "never")
