"""Storms: the rate that a limited server accepts, and what a run loses to 429s.

pytest -m bench -s tests/bench/bench_storm.py
"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from tracefactory.core.model import ChatRequest
from tracefactory.models.openai import OpenAISpec
from tracefactory.serving.client import ChatClient
from tracefactory.serving.fake_script import FakeScript
from tracefactory.serving.fake_server import FakeServer
from tracefactory.serving.managed import FixedEndpoint

pytestmark = pytest.mark.bench

SECONDS = 120


@pytest.mark.parametrize("retry_after_s", [0.0, 1.0])
@pytest.mark.parametrize(("limit", "burst"), [(20.0, 5.0), (100.0, 100.0)])
async def test_the_rate_that_a_server_accepts_is_used(limit: float, burst: float, retry_after_s: float) -> None:
    """Print accepted requests per second as a share of the server's limit, in the last two thirds of two minutes."""
    script = FakeScript(limit=limit, burst=burst, retry_after_s=retry_after_s, latency_s=0.3, latency_sigma=0.4)
    async with FakeServer(script) as server:
        spec = OpenAISpec.model_validate({"model": "m", "base_url": server.base_url, "concurrency": 256})
        client = ChatClient(spec, FixedEndpoint([server.base_url]), Path())
        count = int(limit * SECONDS)
        requests = [
            ChatRequest(model_identity={}, messages=({"role": "user", "content": f"What is {n} + 1?"},))
            for n in range(count)
        ]
        started = time.monotonic()
        arrived: list[float] = []

        async def ask(request: ChatRequest) -> None:
            await client.complete(request)
            arrived.append(time.monotonic() - started)

        await asyncio.gather(*map(ask, requests))
        await client.close()
        late = [at for at in arrived if SECONDS / 3 <= at < SECONDS]
        share = len(late) / (SECONDS * 2 / 3) / limit
        refused = server.faults["limit"]
        print(
            f"\nlimit {limit:g}/s, burst {burst:g}, Retry-After {retry_after_s:g} s: {share:.1%} of the limit, "
            f"{count} of {count} answered in {arrived[-1]:.0f} s, {refused} refused"
        )
        assert len(arrived) == count  # no row is lost
        assert server.completed.total() == count
        assert share > 0.9
