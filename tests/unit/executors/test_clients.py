"""Requests in flight: how many processes send them, what each may send, and that no library holds them back."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from tests.contract import golden
from tracefactory.core.batching import BatchSettings
from tracefactory.core.environment import EnvStr
from tracefactory.core.model import ChatRequest
from tracefactory.engine.executors.ray import _joined, _part
from tracefactory.models.openai import OpenAISpec
from tracefactory.serving.client import ChatClient
from tracefactory.serving.fake_script import FakeScript
from tracefactory.serving.fake_server import FakeServer
from tracefactory.serving.status import EndpointStatus, ModelStatus


def spec(url: str = "http://127.0.0.1:1/v1", **options: Any) -> OpenAISpec:
    return OpenAISpec(model="fake", base_url=EnvStr(url), **options)


@pytest.mark.parametrize(
    ("options", "processes"),
    [
        ({}, 1),
        ({"concurrency": 500}, 1),
        ({"concurrency": 501}, 2),
        ({"concurrency": 4000}, 8),
        ({"concurrency": 4000, "clients": 3}, 3),
        ({"concurrency": 4, "clients": 9}, 4),
        ({"concurrency": 4000, "clients": 3, "batch": BatchSettings()}, 1),
    ],
)
def test_the_processes_that_send_requests(options: dict[str, Any], processes: int) -> None:
    assert spec(**options).client_processes == processes


@pytest.mark.parametrize(("concurrency", "clients"), [(4000, 8), (10, 3), (7, 7), (1, 1)])
def test_the_parts_of_all_processes_are_the_whole(concurrency: int, clients: int) -> None:
    whole = golden.pipeline()
    whole = whole.model_copy(update={"models": {**whole.models, "many": spec(concurrency=concurrency)}})
    parts = [_part(whole, number, clients) for number in range(clients)]
    each = [part.models["many"].concurrency for part in parts]
    assert sum(each) == concurrency
    assert max(each) - min(each) <= 1
    assert [part.models["many"].identity() for part in parts] == [whole.models["many"].identity()] * clients


def test_a_model_in_memory_is_not_divided() -> None:
    whole = golden.pipeline()
    in_memory = {name for name, one in whole.models.items() if one.in_process}
    assert in_memory
    part = _part(whole, 0, 2)
    assert {part.models[name].concurrency for name in in_memory} == {
        whole.models[name].concurrency for name in in_memory
    }


def test_a_server_that_several_processes_ask_is_shown_once() -> None:
    one = EndpointStatus("a:1", 3, 10, 5.0, 100, 1, 2, 4.0, "HTTP 429")
    other = EndpointStatus("a:1", 4, 10, None, 50, 0, 0, 0.0, "")
    found = _joined(ModelStatus("", (one,)), ModelStatus("", (other, one._replace(host="b:1"))))
    assert found[0] == EndpointStatus("a:1", 7, 20, None, 150, 1, 2, 0.0, "HTTP 429")
    assert [state.host for state in found] == ["a:1", "b:1"]


@pytest.mark.asyncio
async def test_more_than_a_thousand_requests_are_in_flight_at_once(tmp_path: Path) -> None:
    wanted = 1_100
    async with FakeServer(FakeScript(reply="7", latency_s=600.0)) as server:
        client = ChatClient.connect(spec(server.base_url, concurrency=wanted), tmp_path)
        messages = ({"role": "user", "content": "3 + 4?"},)
        requests = [ChatRequest(model_identity={}, messages=messages, params={"seed": one}) for one in range(wanted)]
        asked = [asyncio.create_task(client.complete(request)) for request in requests]
        done, _ = await asyncio.wait(asked, timeout=1.0)
        for _ in range(60):
            if server.in_flight < wanted:
                done, _ = await asyncio.wait(asked, timeout=1.0)
        assert server.in_flight == wanted
        assert not done
        for task in asked:
            task.cancel()
        await asyncio.gather(*asked, return_exceptions=True)
        await client.close()
