"""The server of `use: transformers` models: what a client reads, what is refused, and a run whose server is killed."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession
from aiohttp.test_utils import TestServer

from tests.unit.decoders.checkpoints import save_pair
from tests.unit.stages.conftest import unwatched
from tracefactory.config import load_pipeline
from tracefactory.core.environment import Environment
from tracefactory.core.errors import RunError
from tracefactory.core.model import ChatRequest, RequestFailed
from tracefactory.core.spans import Span
from tracefactory.decoding.chat_server import ChatServer
from tracefactory.engine.run import run_pipeline
from tracefactory.models.transformers import TransformersSpec
from tracefactory.serving.client import ChatClient
from tracefactory.serving.logprobs import unpacked
from tracefactory.serving.managed import FixedEndpoint, ManagedEndpoint


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_pair(tmp_path_factory.mktemp("pair"))[0]


@pytest.fixture
def spec(folder: Path) -> TransformersSpec:
    return TransformersSpec.model_validate({"model": str(folder), "dtype": "float64", "concurrency": 3})


@asynccontextmanager
async def served(spec: TransformersSpec, tmp_path: Path) -> AsyncIterator[tuple[ChatClient, str]]:
    """Serve a model in this process; yield a client and the base URL."""
    server = ChatServer(spec.checkpoint(Environment()), spec.concurrency)
    passes = asyncio.create_task(server.run())
    async with TestServer(server.app()) as at:
        client = ChatClient(spec, FixedEndpoint([str(at.make_url("/v1"))]), tmp_path)
        yield client, str(at.make_url("/v1"))
        await client.close()
    passes.cancel()


def ask(text: str, prefill: str = "", **params: Any) -> ChatRequest:
    messages = [{"role": "user", "content": text}]
    messages += [{"role": "assistant", "content": prefill}] if prefill else []
    return ChatRequest(
        model_identity={}, messages=tuple(messages), params={"max_tokens": 9, "seed": 1, "top_p": 0.9, **params}
    )


async def test_a_client_reads_answers(spec: TransformersSpec, tmp_path: Path) -> None:
    async with served(spec, tmp_path) as (client, _):
        requests = [ask("Why?" * at, temperature=0.1 * at, stop=["never"], max_tokens=3 + at) for at in range(1, 8)]
        answers = await asyncio.gather(*map(client.complete, requests))
        again = await client.complete(requests[4])
        prefilled = await client.complete(ask("Why?", "<think>\nSo", temperature=0.0))
        whole = await client.complete(ask("Why?", temperature=0.7, logprobs=True, top_logprobs=1))
    assert all(one.finish_reason == "stop" or one.completion_tokens == 3 + at for at, one in enumerate(answers, 1))
    template = "<|user|>\n<|assistant|>"
    assert [one.prompt_tokens for one in answers] == [len(template) + 4 * at for at in range(1, 8)]
    assert (again.content, again.completion_tokens) == (answers[4].content, answers[4].completion_tokens)
    assert prefilled.prompt_tokens == len(template) + len("Why?<think>\nSo")
    assert not prefilled.content.startswith("<think>\nSo")
    assert whole.logprobs is not None
    assert b"".join(unpacked(whole.logprobs)[0]).decode() == whole.content
    assert whole.served_model == spec.model.rpartition("/")[2]


async def test_a_control_token_in_a_message_is_text(spec: TransformersSpec, tmp_path: Path) -> None:
    async with served(spec, tmp_path) as (client, _):
        spelled = await client.complete(ask("<|endoftext|>"))
    assert spelled.prompt_tokens == len("<|user|><|endoftext|>\n<|assistant|>")


async def test_what_the_context_does_not_hold_is_told_apart(spec: TransformersSpec, tmp_path: Path) -> None:
    async with served(spec, tmp_path) as (client, _):
        with pytest.raises(RequestFailed) as caught:
            await client.complete(ask("x" * 600))
        with pytest.raises(RequestFailed, match="> context of 512 tokens"):
            await client.complete(ask("x", max_tokens=510))
        assert caught.value.kind == "context_length"
        assert (await client.complete(ask("x" * 480))).content is not None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tools": []}, "tools: this server does not support it"),
        ({"top_k": 5}, "top_k: this server does not support it"),
        ({"n": 2}, "n: Input should be 1"),
        ({"stream": True}, "stream: Input should be False"),
        ({"temperature": -1}, "temperature: Input should be greater than or equal to 0"),
        ({"top_p": 0}, "top_p: "),
        ({"stop": ""}, "stop.0: "),
        ({"top_logprobs": 2}, "top_logprobs needs logprobs: true"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "a role and a content, as texts"),
        ({"messages": []}, "messages: "),
    ],
)
async def test_what_it_does_not_support_is_refused(
    changes: dict[str, Any], message: str, spec: TransformersSpec, tmp_path: Path
) -> None:
    body = {"model": "m", "messages": [{"role": "user", "content": "Why?"}], "max_tokens": 1, **changes}
    async with served(spec, tmp_path) as (_, url), ClientSession() as session:
        async with session.post(f"{url}/chat/completions", json=body) as response:
            status, told = response.status, (await response.json())["error"]["message"]
        assert (status, message in told) == (400, True), told


async def test_a_checkpoint_that_cannot_be_loaded_ends_the_run_with_the_reason(
    spec: TransformersSpec, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    client = ChatClient.connect(spec.model_copy(update={"model": type(spec.model)(tmp_path / "empty")}), tmp_path)
    with pytest.raises(RunError, match="cannot load"):
        await client.complete(ask("Why?"))
    await client.close()


PIPELINE = """\
name: chats
version: "1"
models:
  pupil: {{use: transformers, model: {model}, dtype: float64, concurrency: 4, skip_checks: [truncated]}}
stages:
  - {{id: problems, source: files, with: {{paths: [problems.jsonl]}}}}
  - id: chats
    sample: chat
    with: {{model: pupil, prompt: ask, samples: 3, max_tokens: 40}}
run: {{executor: inline, shards: 2, workers: 1}}
"""


@pytest.fixture
def run(tmp_path: Path, folder: Path) -> Callable[[str], Coroutine[Any, Any, Any]]:
    async def make(name: str) -> Any:
        root = tmp_path / name
        for part in ("pipelines", "prompts", "filters"):
            (root / part).mkdir(parents=True)
        (root / "prompts" / "ask.md").write_text("---\nstyle: plain\n---\n{{ question }}\n")
        lines = [json.dumps({"question": f"What is {one} + {one}?", "answer": str(2 * one)}) for one in range(8)]
        (root / "problems.jsonl").write_text("\n".join(lines))
        file = root / "pipelines" / "chats.yaml"
        file.write_text(PIPELINE.format(model=folder))
        pipeline = load_pipeline(file)
        outcome = await run_pipeline(pipeline, unwatched)
        (stage,) = [one for one in outcome.stages if one.id == "chats"]
        return stage, stage.rows(pipeline.project.state_dir).traces(Span.all())

    return make


@pytest.mark.slow  # test_vllm_servers.py kills servers that are started in the same way
async def test_a_run_survives_the_death_of_its_server(
    run: Callable[[str], Coroutine[Any, Any, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed, expected = await run("whole")
    killed: list[ManagedEndpoint] = []
    answered: list[str] = []
    complete = ChatClient.complete

    async def counting(self: ChatClient, request: ChatRequest) -> Any:
        answer = await complete(self, request)
        answered.append(request.key)
        if len(answered) == 9:
            assert isinstance(self._endpoint, ManagedEndpoint)
            assert self._endpoint.pid is not None
            os.kill(self._endpoint.pid, 9)
            killed.append(self._endpoint)
        return answer

    monkeypatch.setattr(ChatClient, "complete", counting)
    stage, rows = await run("killed")
    (endpoint,) = killed
    assert endpoint._deaths == 1
    assert len(answered) == len(set(answered)) == stage.paid["requests"] == 24
    assert (stage.digest, stage.tally.errors, stage.tally.owed) == (undisturbed.digest, 0, 0)
    assert [(one.id, one.answer_text) for one in rows] == [(one.id, one.answer_text) for one in expected]
    assert {one.revision for one in rows} == {expected[0].revision}
    assert expected[0].revision.startswith("checkpoint:")
