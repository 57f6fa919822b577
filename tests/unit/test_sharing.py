"""What a run does with a shared state at its end, and when the store goes away."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tests.unit.store.clouds import Cloud
from tracefactory.core.errors import Interrupted, RunError
from tracefactory.core.pipeline import Pipeline
from tracefactory.engine import sharing
from tracefactory.engine.sharing import Sharing
from tracefactory.store.requests import RequestStore
from tracefactory.store.shared import completions
from tracefactory.store.shared.objects import Unreachable

KEY = hashlib.sha256(b"1").hexdigest()
AWAY = [Unreachable("s3://bucket/state is away")] * 1000


class Run:
    """A run of a pipeline that shares its state, with what it logs and why it is stopped."""

    def __init__(self, root: Path, *, caps: bool = False) -> None:
        project = SimpleNamespace(state_dir=root, shared="s3://bucket/state")
        pipeline = SimpleNamespace(project=project, caps=[1] if caps else [], ledger_name="p@1", models={})
        self.root = root
        self.sharing = Sharing(cast(Pipeline, pipeline))
        self.logged: list[str] = []
        self.stopped: list[str] = []

    def log(self, event: str, **what: Any) -> None:
        self.logged.append(f"{event}: {what}")

    async def __call__(self, work: Any) -> None:
        async with self.sharing.during("run", self.log, self.stopped.append):
            await work()

    async def pay(self) -> None:
        store = RequestStore(self.root, free=0)
        await store.put(KEY, {"number": 1})
        store.close()


@pytest.fixture
def cloud(monkeypatch: pytest.MonkeyPatch) -> Cloud:
    one = Cloud()
    monkeypatch.setattr(sharing, "open_objects", lambda url: one)
    monkeypatch.setattr(sharing, "_TICK_S", 0.01)
    monkeypatch.setattr(sharing, "_FLUSH_S", 0.0)
    monkeypatch.setattr(completions, "RETRY_S", 0.0)
    return one


@pytest.fixture
def run(tmp_path: Path, cloud: Cloud) -> Iterator[Run]:
    one = Run(tmp_path)
    yield one
    one.sharing.close()


def segments(cloud: Cloud) -> int:
    return sum(name.startswith("indexes/") for name in cloud.objects)


@pytest.mark.parametrize("error", [None, Interrupted(), RunError("a stage failed"), KeyboardInterrupt()])
async def test_what_was_paid_is_put_however_a_run_ends(run: Run, cloud: Cloud, error: BaseException | None) -> None:
    async def work() -> None:
        await run.pay()
        if error is not None:
            raise error

    if error is None:
        await run(work)
    else:
        with pytest.raises(type(error)):
            await run(work)
    assert segments(cloud) == 1
    assert not run.stopped


async def test_a_run_that_ends_while_the_store_is_away_says_what_is_not_put(run: Run, cloud: Cloud) -> None:
    async def work() -> None:
        await run.pay()
        cloud.faults["create"] = list(AWAY)

    with pytest.raises(Unreachable, match=r"paid completions are only in .*Run the same command again"):
        await run(work)
    assert segments(cloud) == 0
    cloud.faults.clear()
    await run(run.pay)
    assert segments(cloud) == 1


async def test_what_ended_a_run_is_told_also_when_the_store_is_away(run: Run, cloud: Cloud) -> None:
    async def work() -> None:
        await run.pay()
        cloud.faults["create"] = list(AWAY)
        raise RunError("a stage failed")

    with pytest.raises(RunError, match="a stage failed"):
        await run(work)
    assert any("only in" in line for line in run.logged)


async def test_a_run_stops_when_its_completions_cannot_be_put_for_another_reason(
    run: Run, cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(completions, "SEGMENT_S", 0.0)

    async def work() -> None:
        cloud.faults["create"] = [KeyError("a defect")]
        await run.pay()
        async with asyncio.timeout(10):
            await asyncio.to_thread(_wait_for, run.stopped)

    with pytest.raises(KeyError, match="a defect"):
        await run(work)
    assert "no longer kept up to date" in run.stopped[0]


def _wait_for(said: list[str]) -> None:
    while not said:
        time.sleep(0.01)


async def test_a_second_run_with_caps_is_refused_while_the_first_goes_on(
    tmp_path: Path, cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tracefactory.store.shared.leases.EXPIRES_S", 0.3)
    monkeypatch.setattr("tracefactory.store.shared.leases.RENEW_S", 0.05)
    monkeypatch.setattr("tracefactory.store.shared.leases.POLL_S", 0.05)
    one, two = Run(tmp_path / "one", caps=True), Run(tmp_path / "two", caps=True)

    async def other() -> None:
        async with two.sharing.during("other", two.log, two.stopped.append):
            pytest.fail("both spend")

    with pytest.raises(RunError, match=r"run run .* spends from the same ledger"):
        await one(other)
    await two(two.pay)
    one.sharing.close()
    two.sharing.close()
