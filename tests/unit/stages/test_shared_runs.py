"""Runs of several machines that share an object store, in this process: what two of them may pay for twice."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import wait_until
from tests.s3_server import BUCKET, S3Server, environment, running
from tests.unit.stages.conftest import ROOT
from tracefactory.config import load_pipeline
from tracefactory.core.pipeline import Pipeline
from tracefactory.engine import sharing
from tracefactory.engine.run import run_pipeline
from tracefactory.engine.runs import RunOutcome
from tracefactory.store.shared import completions, reading
from tracefactory.store.shared.cloud import connect
from tracefactory.store.shared.completions import SharedCompletions
from tracefactory.testing import fake_teacher, unwatched

URL = f"s3://{BUCKET}/state"
COUNT = 40
PROBLEMS = "".join(json.dumps({"question": f"What is {n} + 1?", "answer": str(n + 1)}) + "\n" for n in range(COUNT))
STAGES = """\
  - {id: problems, source: files, with: {paths: problems.jsonl}}
  - {id: %s, sample: chat, from: problems, with: {model: t, prompt: math_short, samples: 1, max_tokens: 64}}
run: {executor: inline, shards: 2, workers: 1}
"""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    monkeypatch.setattr(completions, "SEGMENT_S", 0.1)
    monkeypatch.setattr(sharing, "SYNC_S", 0.1)
    monkeypatch.setattr(sharing, "_TICK_S", 0.05)
    with running(S3Server()) as one:
        for name, value in {**environment(one), "TRACEFACTORY_SHARED": URL}.items():
            monkeypatch.setenv(name, value)
        yield one
    reading._objects_of.cache_clear()


def machine(root: Path, entry: object, stage: str) -> Pipeline:
    """Make a project whose pipeline asks the same requests in a stage of this name."""
    (root / "pipelines").mkdir(parents=True)
    (root / "prompts").symlink_to(ROOT / "prompts")
    (root / "problems.jsonl").write_text(PROBLEMS)
    text = f'name: {stage}\nversion: "1"\nmodels: {{t: {json.dumps(entry)}}}\nstages:\n{STAGES % stage}'
    (root / "pipelines" / "p.yaml").write_text(text)
    return load_pipeline(root / "pipelines" / "p.yaml")


def paid(outcome: RunOutcome) -> int:
    return int(sum(stage.paid.get("requests", 0) for stage in outcome.stages))


async def test_two_stages_with_the_same_requests_pay_twice_at_most_what_was_not_put_when_it_was_looked_up(
    server: S3Server, tmp_path: Path
) -> None:
    async with fake_teacher(latency_s=0.1) as teacher:
        entry = {**teacher.entry, "model": "fake", "provider": "fake", "concurrency": 2}
        one, two, three = (machine(tmp_path / name, entry, name) for name in ("one", "two", "three"))
        looker = SharedCompletions(tmp_path / "looker", connect(URL))
        first = asyncio.create_task(run_pipeline(one, unwatched))
        await asyncio.to_thread(wait_until, lambda: put(looker) >= 10, 60)
        known = put(looker)
        second = await run_pipeline(two, unwatched)
        assert paid(second) <= COUNT - known
        assert paid(await first) == COUNT
        assert paid(await run_pipeline(three, unwatched)) == 0
        await asyncio.to_thread(looker.pull)
        assert put(looker) == COUNT
        looker.close()


def put(looker: SharedCompletions) -> int:
    """Return the number of different completions in the shared state."""
    looker.pull()
    looker._load_indexes()
    return len({key for index in looker._indexes.values() for key in index.prefixes.tolist()})
