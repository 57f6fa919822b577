"""Runs of one pipeline at the same time, on state folders of their own, that divide the shards of its stages."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.e2e.conftest import wait_until
from tests.s3_server import BUCKET, S3Server, environment, running
from tests.unit.stages.conftest import ROOT
from tracefactory.config import load_pipeline
from tracefactory.core.pipeline import Pipeline
from tracefactory.engine import dividing, sharing
from tracefactory.engine.run import run_pipeline
from tracefactory.engine.runs import RunOutcome
from tracefactory.store.indexes import prefixes_of
from tracefactory.store.shared import completions, leases, reading
from tracefactory.store.shared.cloud import CloudObjects, connect
from tracefactory.store.shared.objects import Unreachable
from tracefactory.store.stages import StageFolder
from tracefactory.testing import fake_teacher, unwatched

URL = f"s3://{BUCKET}/state"
COUNT = 48
PROBLEMS = "".join(json.dumps({"question": f"What is {n} + 1?", "answer": str(n + 1)}) + "\n" for n in range(COUNT))
PIPELINE = """\
name: sums
version: "1"
models: {t: %s}
stages:
  - {id: problems, source: files, with: {paths: problems.jsonl}}
  - {id: short, sample: chat, from: problems, with: {model: t, prompt: math_short, samples: 1, max_tokens: 64}}
  - {id: checked, verify: auto, from: short}
  - {id: clean, filter: [verdict]}
run: {executor: inline, shards: %d, workers: 1}
"""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    monkeypatch.setattr(completions, "SEGMENT_S", 0.1)
    monkeypatch.setattr(sharing, "SYNC_S", 0.1)
    monkeypatch.setattr(sharing, "_TICK_S", 0.05)
    monkeypatch.setattr(leases, "POLL_S", 0.1)
    monkeypatch.setattr(dividing, "shards_at_once", lambda host, pipeline: 2)
    with running(S3Server()) as one:
        for name, value in {**environment(one), "TRACEFACTORY_SHARED": URL}.items():
            monkeypatch.setenv(name, value)
        yield one
    reading._objects_of.cache_clear()


def machine(root: Path, entry: object, *, shards: int = 16) -> Pipeline:
    (root / "pipelines").mkdir(parents=True)
    for shipped in ("prompts", "filters"):
        (root / shipped).symlink_to(ROOT / shipped)
    (root / "problems.jsonl").write_text(PROBLEMS)
    (root / "pipelines" / "p.yaml").write_text(PIPELINE % (json.dumps(entry), shards))
    return load_pipeline(root / "pipelines" / "p.yaml")


def entry_of(teacher: Any) -> dict[str, object]:
    return {**teacher.entry, "model": "fake", "provider": "fake", "concurrency": 4}


def paid(outcome: RunOutcome) -> int:
    return int(sum(stage.paid.get("requests", 0) for stage in outcome.stages))


def digests(outcome: RunOutcome) -> dict[str, str]:
    return {stage.id: stage.digest for stage in outcome.stages}


def made_by(pipeline: Pipeline, outcome: RunOutcome, stage_id: str) -> Counter[str]:
    """Return how many shards of a stage each run has made."""
    (stage,) = [one for one in outcome.stages if one.id == stage_id]
    folder = StageFolder(pipeline.project.state_dir, stage.id, stage.key)
    records = [folder.shard_record(index, count) for index, count in folder.finished_shards()]
    return Counter(one.run for one in records if one is not None)


def objects(server: S3Server, prefix: str) -> dict[str, bytes]:
    return {name: one.content for name, one in server.objects.items() if name.startswith(f"state/{prefix}")}


def keys_in(indexes: Iterable[bytes]) -> set[int]:
    """Return the first 64 bits of the keys of all completions in some indexes of segments."""
    return {
        key
        for one in indexes
        for key in np.frombuffer(one, np.uint64, int.from_bytes(one[8:16], "little"), 24).tolist()
    }


class Cable(CloudObjects):
    """What a machine is connected to the shared state with; once it is cut, the machine is lost to all others."""

    def __init__(self, real: CloudObjects) -> None:
        super().__init__(real._store, real.url)
        self.is_cut = False
        self.put: list[str] = []

    def create(self, name: str, content: bytes) -> str | None:
        found = super().create(name, content)
        self.put.append(name)
        return found

    @contextmanager
    def _asking(self, what: str, name: str) -> Iterator[None]:
        if self.is_cut:
            raise Unreachable("the cable is cut")
        with super()._asking(what, name):
            yield


async def test_two_runs_divide_a_stage_and_pay_once(server: S3Server, tmp_path: Path) -> None:
    async with fake_teacher(latency_s=0.1) as teacher:
        one, two = (machine(tmp_path / name, entry_of(teacher)) for name in ("one", "two"))
        first, second = await asyncio.gather(run_pipeline(one, unwatched), run_pipeline(two, unwatched))
    assert paid(first) + paid(second) == COUNT
    assert digests(first) == digests(second)
    for stage in ("short", "checked", "clean"):
        assert made_by(one, first, stage) == made_by(two, second, stage)
    assert len(made_by(one, first, "short")) == 2
    for one_stage in first.stages:
        shared = server.objects[f"state/stages/{one_stage.id}-{one_stage.key[:16]}/manifest.json"]
        assert b"record.json" in shared.content
    assert set(objects(server, "leases/").values()) == {b"{}"}  # everything is given back
    assert not objects(server, "leases/members/")
    assert not [name for name in objects(server, "leases/stages/") if "-of-" in name]


async def test_what_a_lost_machine_held_is_taken_over_and_only_what_it_had_not_put_is_paid_again(
    server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cables: list[Cable] = []

    def connected(url: str) -> Cable:
        cables.append(Cable(cast(CloudObjects, connect(url))))
        return cables[-1]

    monkeypatch.setattr(sharing, "open_objects", connected)
    monkeypatch.setattr(sharing, "_FLUSH_S", 0.0)
    async with fake_teacher(latency_s=0.3) as teacher:
        one, two = (machine(tmp_path / name, entry_of(teacher)) for name in ("one", "two"))
        first = asyncio.create_task(run_pipeline(one, unwatched))
        await asyncio.to_thread(wait_until, lambda: len(keys_in(objects(server, "indexes/").values())) >= 6, 60)
        second = asyncio.create_task(run_pipeline(two, unwatched))
        await asyncio.to_thread(wait_until, lambda: len(cables) == 2 and any("-of-" in n for n in cables[1].put), 60)
        cables[0].is_cut = True
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        held = [one for name, one in objects(server, "leases/stages/").items() if "-of-" in name]
        run = next((one.project.state_dir / "runs").iterdir()).name
        assert any(run.encode() in content for content in held)  # nothing was given back
        name = f"state/leases/runs/{run}.json"
        server.objects[name] = server.objects[name]._replace(modified=0.0)
        outcome = await asyncio.wait_for(second, 60)
    put = keys_in(objects(server, "indexes/")[f"state/{name}"] for name in cables[0].put if name.startswith("indexes/"))
    assert 0 < len(put) < COUNT
    assert paid(outcome) == COUNT - len(put)
    assert len(keys_in(objects(server, "indexes/").values())) == COUNT
    assert outcome.stages[-1].tally.rows_in == COUNT


async def test_faults_of_the_store_cost_neither_rows_nor_requests(
    server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sharing, "open_objects", connect)  # without the probe, which fails with them
    async with fake_teacher(latency_s=0.05) as teacher:
        one, two = (machine(tmp_path / name, entry_of(teacher), shards=8) for name in ("one", "two"))
        faults: list[int | str] = ["", "lost", "", "", 503, "", 409, "", "", "slow", ""] * 30
        server.faults = {"PUT": list(faults), "GET": ["", 503, "", ""] * 30, "HEAD": ["", "", 503] * 30}
        first, second = await asyncio.gather(run_pipeline(one, unwatched), run_pipeline(two, unwatched))
    assert paid(first) + paid(second) == COUNT
    assert digests(first) == digests(second)


async def test_a_run_that_divides_a_stage_otherwise_waits_until_it_is_finished(
    server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with fake_teacher(latency_s=0.2) as teacher:
        one, two = (
            machine(tmp_path / name, entry_of(teacher), shards=shards) for name, shards in (("one", 16), ("two", 4))
        )
        monkeypatch.delenv("TRACEFACTORY_SHARED")
        text = two.file.read_text()
        two.file.write_text(
            "\n".join(line for line in text.splitlines() if "from:" not in line and "clean" not in line)
        )
        await run_pipeline(load_pipeline(two.file), unwatched)  # its own source is in 4 shards
        monkeypatch.setenv("TRACEFACTORY_SHARED", URL)
        two.file.write_text(text)
        first = asyncio.create_task(run_pipeline(one, unwatched))
        await asyncio.to_thread(wait_until, lambda: bool(keys_in(objects(server, "indexes/").values())), 60)
        second = await run_pipeline(load_pipeline(two.file), unwatched)
        assert paid(await first) == COUNT
    assert paid(second) == 0
    assert digests(second) == digests(await first)
    log = next((two.project.state_dir / "runs").glob(f"{second.run}/log.jsonl")).read_text()
    assert "which works on it in 16 shards" in log


async def test_no_shard_is_shared_before_its_completions(
    server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared: list[str] = []

    class Watched(Cable):
        def create(self, name: str, content: bytes) -> str | None:
            if name.startswith("stages/short-") and content.startswith(b"PAR1"):
                table = pq.read_table(BytesIO(content))
                if "request_key" in table.column_names:
                    keys = table["request_key"].to_pylist()
                    missing = set(prefixes_of(keys).tolist()) - keys_in(objects(server, "indexes/").values())
                    assert not missing
                    shared.extend(keys)
            return super().create(name, content)

    monkeypatch.setattr(sharing, "open_objects", lambda url: Watched(cast(CloudObjects, connect(url))))
    monkeypatch.setattr(completions, "SEGMENT_S", 30.0)
    async with fake_teacher(latency_s=0.1) as teacher:
        assert paid(await run_pipeline(machine(tmp_path / "one", entry_of(teacher)), unwatched)) == COUNT
    assert len(set(shared)) == COUNT


@pytest.mark.parametrize(("count", "taken"), [(1, 1), (2, 1), (8, 4), (16, 8), (256, 8)])
def test_a_run_leaves_half_of_the_shards_to_others(tmp_path: Path, count: int, taken: int) -> None:
    entry = {"use": "openai", "model": "m", "base_url": "http://127.0.0.1:1", "price": {"input": 1, "output": 1}}
    pipeline = machine(tmp_path, entry, shards=count)
    assert dividing.taken_at_once(pipeline.stage("short"), pipeline, count) == taken
    assert dividing.taken_at_once(pipeline.stage("checked"), pipeline, count) == 1  # `workers: 1`
    batching = machine(tmp_path / "batching", {**entry, "batch": {"window": "24h"}}, shards=count)
    assert dividing.taken_at_once(batching.stage("short"), batching, count) >= count
