"""What a run does with a shared state at its end, and when the store goes away."""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.unit.store.clouds import Cloud
from tracefactory.core.errors import Interrupted, RunError
from tracefactory.core.pipeline import Pipeline, StageSpec
from tracefactory.engine import sharing
from tracefactory.engine.sharing import sharing_of
from tracefactory.store.records import with_checksum, write_record
from tracefactory.store.requests import RequestStore
from tracefactory.store.shared import completions, leases
from tracefactory.store.shared.objects import Unreachable
from tracefactory.store.stages import FOOTER_KEY, ShardRecord, Tally

KEY = hashlib.sha256(b"1").hexdigest()
AWAY = [Unreachable("s3://bucket/state is away")] * 1000


class Run:
    """A run of a pipeline that shares its state, with what it logs and why it is stopped."""

    def __init__(self, root: Path, *, caps: bool = False) -> None:
        project = SimpleNamespace(state_dir=root, shared="s3://bucket/state")
        pipeline = SimpleNamespace(project=project, caps=[1] if caps else [], ledger_name="p@1", models={})
        self.root = root
        self.sharing = sharing_of(cast(Pipeline, pipeline))
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


def _wait_for(output: list[str]) -> None:
    while not output:
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


def finished_shard(folder: Path, index: int, by: str = "run") -> None:
    """Write a finished shard of two, as the work on it does."""
    record = ShardRecord(run=by, inputs={}, digest="d", token="d", tally=Tally())
    footer = {FOOTER_KEY: json.dumps(with_checksum(record.model_dump(mode="json"))).encode()}
    table = pa.table({}).replace_schema_metadata(footer)
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, folder / f"judged-{index:05d}-of-00002.parquet")


def shared_files(cloud: Cloud) -> list[str]:
    return sorted(json.loads(cloud.get("stages/s-1/manifest.json")[0])["files"])


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> StageSpec[Any]:
    monkeypatch.setattr(sharing, "host_of", lambda stage, pipeline: "cpu")
    monkeypatch.setattr(sharing, "taken_at_once", lambda stage, pipeline, count: 2)
    monkeypatch.setattr(leases, "POLL_S", 0.02)
    return cast(StageSpec[Any], None)


async def test_shards_that_could_not_be_put_when_their_stage_ended_are_put_by_the_end_of_the_run(
    run: Run, cloud: Cloud, stage: StageSpec[Any]
) -> None:
    folder = run.root / "stages" / "s-1"

    async def work() -> None:
        async with run.sharing.stage(folder, "run", run.stopped.append, run.stopped.append, shards=2):
            async with run.sharing.shard(stage, folder, 0, lambda record, fresh: True, nullcontext()) as here:
                assert here
                finished_shard(folder, 0)
            cloud.faults["create"] = list(AWAY)
        cloud.faults.clear()
        assert "stages/s-1/manifest.json" not in cloud.objects

    await run(work)
    assert shared_files(cloud) == ["judged-00000-of-00002.parquet"]
    assert not run.stopped


async def test_a_stage_that_others_divide_is_not_put_over_their_work(
    tmp_path: Path, run: Run, cloud: Cloud, stage: StageSpec[Any]
) -> None:
    """It was finished here before the state was shared."""
    folder, theirs = (root / "stages" / "s-1" for root in (run.root, tmp_path / "two"))
    finished_shard(folder, 0)
    finished_shard(folder, 1)
    write_record(folder / "record.json", {"tally": {}, "digest": "d", "finished": 1})
    two = Run(tmp_path / "two")

    async def other() -> None:
        async with two.sharing.stage(theirs, "two", two.stopped.append, two.stopped.append, shards=2):
            async with two.sharing.shard(stage, theirs, 0, lambda record, fresh: True, nullcontext()) as here:
                assert here
                finished_shard(theirs, 0, by="two")
            cast(sharing.SharedState, run.sharing)._stage(folder)
            await run(nothing)
            assert "stages/s-1/manifest.json" not in cloud.objects
        assert shared_files(cloud) == ["judged-00000-of-00002.parquet"]

    async with two.sharing.during("two", two.log, two.stopped.append):
        await other()
    two.sharing.close()
    await run(nothing)  # nobody works on it any more
    assert len(shared_files(cloud)) == 3


@pytest.mark.parametrize("shards", [4, None])
async def test_who_waits_for_a_stage_that_is_divided_otherwise_is_told_for_whom_and_can_be_stopped(
    tmp_path: Path, run: Run, cloud: Cloud, stage: StageSpec[Any], shards: int | None
) -> None:
    folder, output = run.root / "stages" / "s-1", asyncio.Event()
    texts: list[str] = []

    def tell(text: str) -> None:
        texts.append(text)
        output.set()

    async def waiting() -> None:
        async with run.sharing.stage(folder, "run", tell, run.stopped.append, shards=shards):
            pytest.fail("both work on it")

    async def work() -> None:
        task = asyncio.create_task(waiting())
        await asyncio.wait_for(output.wait(), 10)
        run.sharing.stop()
        with pytest.raises(Interrupted):
            await asyncio.wait_for(task, 10)

    two = Run(tmp_path / "two")
    async with (
        two.sharing.during("two", two.log, two.stopped.append),
        two.sharing.stage(folder, "two", two.stopped.append, two.stopped.append, shards=2),
    ):
        await run(work)
    two.sharing.close()
    assert "waiting for run two (process " in texts[0]
    assert "which works on it in 2 shards, until it ends" in texts[0]
    assert cloud.objects["leases/stages/s-1.json"][0] == b"{}"


async def nothing() -> None:
    return
