"""Many requests in flight over many servers, by one process and by several, against a bare loop of aiohttp."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import aiohttp
import numpy as np
import pytest

from tests.bench.bench_sampling import project
from tests.bench.measured import run_cli

pytestmark = pytest.mark.bench

SERVERS = 32
IN_FLIGHT = int(os.environ.get("TRACEFACTORY_BENCH_IN_FLIGHT", "4000"))
LATENCY_S = float(os.environ.get("TRACEFACTORY_BENCH_LATENCY_S", "30"))
SIGMA = 0.25
"""Shape of the lognormal of latencies: answers differ in length, so that requests do not end all at once."""
REQUESTS = int(os.environ.get("TRACEFACTORY_BENCH_ROUNDS", "6")) * IN_FLIGHT


@pytest.fixture
def servers() -> Iterator[Callable[[Path], list[str]]]:
    """Start the servers in two processes, which write to one log; return their base URLs."""
    started: list[subprocess.Popen[str]] = []

    def start(log: Path) -> list[str]:
        script = json.dumps({"reply": "Let me think. " * 70, "latency_s": LATENCY_S, "latency_sigma": SIGMA})
        urls: list[str] = []
        for _ in range(2):
            command = [sys.executable, "-m", "tests.bench.many_servers", str(SERVERS // 2), script, str(log)]
            started.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
            assert started[-1].stdout is not None
            urls += [line.strip() for line in iter(started[-1].stdout.readline, "\n")]
        return urls

    yield start
    for one in started:
        one.kill()
        one.communicate()


class Flow(NamedTuple):
    """What servers saw of one client.

    Attributes:
        seconds: from the request that brought 100 in flight, to the last answer; a run checks its first answers alone.
        rate: answers per second in the middle half of the answers, without the start and the end.
        in_flight: the mean number of requests in flight at these answers.
        peak: the most requests in flight.
    """

    seconds: float
    rate: float
    in_flight: float
    peak: int

    @classmethod
    def of(cls, log: Path) -> Flow:
        """Return what a log of the servers tells."""
        events = sorted((line["at"], line["event"]) for line in map(json.loads, log.read_text().splitlines()))
        times = np.array([at for at, _ in events])
        is_answer = np.array([event == "completed" for _, event in events])
        in_flight = np.cumsum(np.where(is_answer, -1, 1))
        began = times[np.argmax(in_flight >= 100)]
        answers, held = times[is_answer], in_flight[is_answer]
        first, last = len(answers) // 4, len(answers) * 3 // 4
        rate = (last - first) / (answers[last] - answers[first])
        return cls(answers[-1] - began, rate, float(held[first:last].mean()), int(in_flight.max()))

    def __str__(self) -> str:
        return f"{self.seconds:.1f} s, {self.rate:.1f} a second in the middle half with {self.in_flight:,.0f} in flight"


async def bare(urls: list[str]) -> None:
    """Ask for as many completions with aiohttp alone, as many at once."""
    slots = asyncio.Semaphore(IN_FLIGHT)
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=None)
    ) as session:

        async def one(number: int) -> None:
            message = {"role": "user", "content": f"What is {number} + 1?"}
            body = {"model": "fake", "messages": [message], "temperature": 0.7, "max_tokens": 1024, "seed": number}
            async with slots, session.post(f"{urls[number % SERVERS]}/chat/completions", json=body) as answer:
                assert (await answer.json())["choices"][0]["message"]["content"]

        await asyncio.gather(*map(one, range(REQUESTS)))


@pytest.mark.parametrize("executor", ["inline", "ray"])
def test_many_requests_in_flight(tmp_path: Path, servers: Callable[[Path], list[str]], executor: str) -> None:
    logs = tmp_path / "bare.jsonl", tmp_path / "run.jsonl"
    asyncio.run(bare(servers(logs[0])))
    quoted = '", "'.join(servers(logs[1]))
    file = project(tmp_path, "URLS", problems=REQUESTS, concurrency=IN_FLIGHT, executor=executor)
    # Answers are read at once, as by the bare loop.
    file.write_text(file.read_text().replace('"URLS"', f'["{quoted}"], stream: false'))
    took = run_cli("run", file)
    alone, run = map(Flow.of, logs)
    print(
        f"\n{REQUESTS:,} answers at {LATENCY_S:g} s from {SERVERS} servers, {executor}: {run}; bare loop: {alone}; "
        f"ratio of rates {run.rate / alone.rate:.2f}, of seconds {alone.seconds / run.seconds:.2f}; {took}"
    )
    assert run.peak > 0.9 * IN_FLIGHT
