"""Many requests in flight over many servers, by one process and by several, against a bare loop of aiohttp."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import aiohttp
import pytest

from tests.bench.bench_sampling import project, seconds_of_sampling
from tests.bench.measured import run_cli

pytestmark = pytest.mark.bench

SERVERS = 32
IN_FLIGHT = int(os.environ.get("TRACEFACTORY_BENCH_IN_FLIGHT", "4000"))
LATENCY_S = float(os.environ.get("TRACEFACTORY_BENCH_LATENCY_S", "30"))
SIGMA = 0.25
"""Shape of the lognormal of latencies: answers differ in length, so that requests do not end all at once."""
REQUESTS = int(os.environ.get("TRACEFACTORY_BENCH_ROUNDS", "6")) * IN_FLIGHT


@pytest.fixture
def servers() -> Iterator[Callable[[], list[str]]]:
    """Start the servers in two processes; return their base URLs."""
    started: list[subprocess.Popen[str]] = []

    def start() -> list[str]:
        script = json.dumps({"reply": "Let me think. " * 70, "latency_s": LATENCY_S, "latency_sigma": SIGMA})
        urls: list[str] = []
        for _ in range(2):
            command = [sys.executable, "-m", "tests.bench.many_servers", str(SERVERS // 2), script]
            started.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
            assert started[-1].stdout is not None
            urls += [line.strip() for line in iter(started[-1].stdout.readline, "\n")]
        return urls

    yield start
    for one in started:
        one.kill()
        one.communicate()


def peak(urls: list[str]) -> int:
    """Return the sum of the most requests that each server has had in flight."""
    total = 0
    for url in urls:
        with urllib.request.urlopen(url.removesuffix("/v1") + "/stats", timeout=60) as answer:
            total += json.load(answer)["peak_in_flight"]
    return total


async def bare(urls: list[str]) -> float:
    """Ask for as many completions with aiohttp alone, as many at once; return the seconds."""
    slots = asyncio.Semaphore(IN_FLIGHT)
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=None)
    ) as session:

        async def one(number: int) -> None:
            message = {"role": "user", "content": f"What is {number} + 1?"}
            body = {"model": "fake", "messages": [message], "temperature": 0.7, "max_tokens": 1024, "seed": number}
            async with slots, session.post(f"{urls[number % SERVERS]}/chat/completions", json=body) as answer:
                assert (await answer.json())["choices"][0]["message"]["content"]

        started = time.perf_counter()
        await asyncio.gather(*map(one, range(REQUESTS)))
        return time.perf_counter() - started


@pytest.mark.parametrize("executor", ["inline", "ray"])
def test_many_requests_in_flight(tmp_path: Path, servers: Callable[[], list[str]], executor: str) -> None:
    urls = servers()
    alone = asyncio.run(bare(urls))
    again = servers()
    quoted = '", "'.join(again)
    file = project(tmp_path, "URLS", problems=REQUESTS, concurrency=IN_FLIGHT, executor=executor)
    # Answers are read at once, as by the bare loop.
    file.write_text(file.read_text().replace('"URLS"', f'["{quoted}"], stream: false'))
    took = run_cli("run", file)
    # The first answers are checked before others are asked for.
    seconds = seconds_of_sampling(tmp_path) - LATENCY_S
    print(
        f"\n{REQUESTS:,} answers at {LATENCY_S:g} s from {SERVERS} servers, {executor}: {peak(again):,} in flight, "
        f"{seconds:.1f} s; bare loop: {peak(urls):,} and {alone:.1f} s; ratio {alone / seconds:.2f}; {took}"
    )
    assert peak(again) > 0.9 * IN_FLIGHT
