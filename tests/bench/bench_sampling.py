"""Sampling end to end against a bare loop with the same client, and a large request store that is opened again."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.bench.big_requests import fill
from tests.bench.measured import run, run_cli
from tracefactory.config import load_pipeline
from tracefactory.core.environment import Environment
from tracefactory.core.files import read_json
from tracefactory.core.model import ChatRequest
from tracefactory.core.pipeline import Pipeline
from tracefactory.serving.client import ChatClient

pytestmark = pytest.mark.bench

REQUESTS = int(os.environ.get("TRACEFACTORY_BENCH_REQUESTS", "20000"))
PIPELINE = """\
name: many
version: "1"
models:
  teacher: {{use: openai, model: fake, base_url: "{url}", concurrency: {concurrency}}}
stages:
  - {{id: problems, source: files, with: {{paths: many.jsonl}}}}
  - {{id: sampled, sample: chat, from: problems, with: {{model: teacher, prompt: plain, samples: 1}}}}
run: {{executor: {executor}}}
"""
OPEN_STORE = """\
import json, resource, sys, time
from pathlib import Path
started = time.perf_counter()
from tracefactory.store.requests import RequestStore
keys = Path(sys.argv[2]).read_text().split()
imported = time.perf_counter()
store = RequestStore(Path(sys.argv[1]))
found = store.present(keys)
looked = time.perf_counter()
characters = sum(
    len(one["completion"]["content"])
    for at in range(0, len(keys), 1024)
    for one in store.get(keys[at : at + 1024]).values()
)
read = time.perf_counter()
took = {"present_s": looked - imported, "get_s": read - looked}
print(json.dumps({"found": len(found), "characters": characters, **took}))
"""


@pytest.fixture
def server() -> Iterator[Callable[..., str]]:
    """Start a fake teacher in a process of its own; return its base URL."""
    started: list[subprocess.Popen[str]] = []

    def start(**script: Any) -> str:
        command = [sys.executable, "-m", "tracefactory.serving.fake_server", "--script", json.dumps(script)]
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        assert started[-1].stdout is not None
        return started[-1].stdout.readline().split()[-1]

    yield start
    for one in started:
        one.kill()
        one.communicate()


def project(root: Path, url: str, *, problems: int, concurrency: int, executor: str = "inline") -> Path:
    (root / "pipelines").mkdir(parents=True)
    (root / "prompts").mkdir()
    (root / "prompts/plain.md").write_text("---\nstyle: long\n---\n{{ question }}\n")
    with (root / "many.jsonl").open("w") as file:
        for number in range(problems):
            file.write(json.dumps({"question": f"What is {number} + 1?", "answer": str(number + 1)}) + "\n")
    file = root / "pipelines/many.yaml"
    file.write_text(PIPELINE.format(url=url, concurrency=concurrency, executor=executor))
    return file


def seconds_of_sampling(root: Path) -> float:
    (outcome,) = (root / ".tracefactory/runs").glob("*/outcome.json")
    (stage,) = [one for one in read_json(outcome)["stages"] if one["id"] == "sampled"]
    return float(stage["paid"]["seconds"])


async def bare(pipeline: Pipeline, root: Path, count: int) -> float:
    """Ask for as many completions with the client alone, as many at once; return the seconds."""
    spec = pipeline.models["teacher"]
    client = ChatClient.connect(spec, root, Environment(root=root))
    params = {"temperature": 0.7, "top_p": 0.95, "max_tokens": 4096}
    slots = asyncio.Semaphore(spec.concurrency)

    async def one(number: int) -> None:
        message = {"role": "user", "content": f"What is {number} + 1?"}
        async with slots:
            await client.complete(ChatRequest(model_identity={}, messages=(message,), params=params | {"seed": number}))

    try:
        await asyncio.gather(*map(one, range(64)))
        started = time.perf_counter()
        await asyncio.gather(*map(one, range(count)))
        return time.perf_counter() - started
    finally:
        await client.close()


@pytest.mark.parametrize("executor", ["inline", "ray"])
def test_tiny_completions(tmp_path: Path, server: Callable[..., str], executor: str) -> None:
    """Processor time of a whole run, the server's not counted; with Ray, that of the driver alone."""
    file = project(tmp_path, server(reply="7"), problems=REQUESTS, concurrency=64, executor=executor)
    took = run_cli("run", file)
    files = sum(one.is_file() for one in (tmp_path / ".tracefactory").rglob("*"))
    each = took.cpu / REQUESTS * 1e3
    print(f"\n{REQUESTS:,} tiny completions, {executor}: {took}, {each:.2f} ms each, {files} files")
    again = run_cli("run", file)
    print(f"the same command again: {again}")
    assert files < 100 + REQUESTS / 50


@pytest.mark.parametrize(("latency", "concurrency", "least"), [(0.0, 64, 0.7), (2.0, 256, 0.95)])
def test_sampling_against_a_bare_loop(
    tmp_path: Path, server: Callable[..., str], latency: float, concurrency: int, least: float
) -> None:
    count = 8000 if latency == 0 else 2560  # enough for the half second in which the client is imported
    url = server(reply="Let me think. " * 1450, latency_s=latency)
    file = project(tmp_path, url, problems=count, concurrency=concurrency)
    alone = asyncio.run(bare(load_pipeline(file), tmp_path, count))
    took = run_cli("run", file)
    seconds = seconds_of_sampling(tmp_path)
    print(
        f"\n{count} answers of 20 KB at {latency:g} s, {concurrency} in flight: {seconds:.1f} s, "
        f"bare loop {alone:.1f} s: {alone / seconds:.2f}; command {took}"
    )
    assert alone / seconds > least


def test_a_large_store_is_opened_again(tmp_path: Path) -> None:
    """A store of completions of 20 KB, in segments and one open journal, opened by a process that was not there."""
    keys = fill(tmp_path, REQUESTS)
    (tmp_path / "keys").write_text("\n".join(sorted(keys)))  # as a run does: problem by problem
    took = run([sys.executable, "-c", OPEN_STORE, str(tmp_path), str(tmp_path / "keys")])
    found = json.loads(took.output)
    print(f"\n{REQUESTS:,} completions of 20 KB: {found}, {took}")
    assert found["found"] == REQUESTS
