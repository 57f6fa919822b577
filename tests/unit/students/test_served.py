"""A served student: its servers are asked whether they report the model's own log-probabilities, never believed."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from tests.unit.students.conftest import gguf
from tracefactory.core.checkpoint import Checkpoint
from tracefactory.core.errors import UserError
from tracefactory.core.model import RequestFailed
from tracefactory.core.token_scores import TokenScores
from tracefactory.models.openai import OpenAISpec
from tracefactory.serving.client import ChatClient
from tracefactory.serving.logprobs_mode import prompt_logprobs_fault
from tracefactory.serving.managed import FixedEndpoint
from tracefactory.students.served import ServedStudent

TOKENS = 8
Serve = Callable[..., Coroutine[Any, Any, ServedStudent]]


class Server:
    """A vLLM of one made-up model of eight tokens besides those of the prompt, in any of the modes."""

    def __init__(self, mode: str, refused: int = 0) -> None:
        self.mode, self.refused = mode, refused
        self.probes = self.scored = 0

    def logits(self, ids: list[int], position: int) -> list[float]:
        """The last one is that of the prompt's own token."""
        start = sum((at + 1) * one for at, one in enumerate(ids[:position]))
        shift = -60.0 if self.mode == "negative logits" else 12.0
        return [shift + ((start * 7 + number * number * 31) % 97) / 12 for number in range(TOKENS + 1)]

    def values(self, ids: list[int], position: int, temperature: float) -> list[float]:
        logits = self.logits(ids, position)
        if self.mode in ("logits", "negative logits"):
            return logits
        if self.mode == "processed_logprobs":
            logits = [one / (temperature or 1.0) for one in logits]
        if self.mode == "noisy":
            logits = [one + 0.02 * math.sin(position + temperature * 7) for one in logits]
        most = math.log(sum(map(math.exp, logits)))
        return [one - most for one in logits]

    async def answer(self, request: web.Request) -> web.Response:
        body = await request.json()
        ids, sampling = body["token_ids"], body["sampling_params"]
        if self.refused:
            self.refused -= 1
            return web.json_response({"error": {"message": "no", "code": 400}}, status=400)
        probed = sampling["temperature"] > 0
        self.probes += probed
        self.scored += not probed
        rows: list[Any] = [None]
        for position in range(1, len(ids)):
            values = self.values(ids, position, sampling["temperature"])
            ranks = {one: rank for rank, one in enumerate(sorted(range(len(values)), key=lambda n: -values[n]), 1)}
            names = [*(str(100_000 + number) for number in range(TOKENS)), str(ids[position])]
            rows.append(
                {
                    name: {"logprob": values[number], "rank": ranks[number]}
                    for number, name in enumerate(names)
                    if ranks[number] <= sampling["prompt_logprobs"] or number == TOKENS
                }
            )
        top = {"token_id": 9, "logprob": -0.5, "rank": 1}
        drawn = {"content": [{**top, "top_logprobs": [top]}]}
        usage = {"prompt_tokens": len(ids), "prompt_tokens_details": {"cached_tokens": 0}}
        choice = {"token_ids": [9], "logprobs": drawn, "finish_reason": "length"}
        return web.json_response({"choices": [choice], "usage": usage, "prompt_logprobs": rows})


@pytest.fixture
async def serve(tmp_path: Path) -> AsyncIterator[Serve]:
    closing: list[Callable[[], Coroutine[Any, Any, None]]] = []

    async def start(server: Server, **fields: Any) -> ServedStudent:
        app = web.Application()
        app.router.add_post("/inference/v1/generate", server.answer)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
        closing.append(runner.cleanup)
        client = ChatClient(OpenAISpec(model="m", base_url=(url,), retries=0, **fields), FixedEndpoint([url]), tmp_path)
        closing.insert(0, client.close)
        return ServedStudent(Checkpoint(model=str(gguf("smollm2-135m"))), client, 2048)

    yield start
    for close in closing:
        await close()


def traces(student: ServedStudent, count: int) -> list[Any]:
    return [
        student.render(f"What is {n} + 1?", f"One more than {n} is {n + 1}.", f"It is {n + 1}.") for n in range(count)
    ]


@pytest.mark.parametrize("mode", ["raw_logprobs", "noisy"])
async def test_a_server_with_the_models_own_log_probabilities_is_probed_once(serve: Serve, mode: str) -> None:
    server = Server(mode)
    student = await serve(server)
    found = await student.score(traces(student, 4))
    assert all(isinstance(one, TokenScores) for one in found)
    assert (server.probes, server.scored) == (2, 4)
    await student.score(traces(student, 1))
    assert server.probes == 2


@pytest.mark.parametrize(
    ("mode", "message"),
    [
        ("logits", r"reports logits in place of the log-probabilities .*--logprobs-mode raw_logprobs"),
        ("negative logits", r"reports logits in place of .*--logprobs-mode raw_logprobs"),
        ("processed_logprobs", r"change with the temperature: they are processed .*--logprobs-mode raw_logprobs"),
    ],
)
async def test_a_server_that_reports_something_else_is_refused_before_anything_is_scored(
    serve: Serve, mode: str, message: str
) -> None:
    server = Server(mode)
    student = await serve(server)
    with pytest.raises(UserError, match=f"the server of m: .*{message}"):
        await student.score(traces(student, 3))
    assert server.scored == 0
    trusted = await serve(Server(mode), skip_checks=("logprobs",))
    assert all(isinstance(one, TokenScores) for one in await trusted.score(traces(trusted, 1)))


async def test_a_probe_that_fails_settles_nothing_and_the_next_trace_probes_again(serve: Serve) -> None:
    server = Server("raw_logprobs", refused=1)
    student = await serve(server)
    first, *others = await student.score(traces(student, 3))
    assert isinstance(first, RequestFailed)
    assert all(isinstance(one, TokenScores) for one in others)
    assert server.probes == 2


RAW = [(-3.0, -0.1, -2.4), (-0.2, -0.2, -1.8), (-5.0, -0.7, -0.8)]


@pytest.mark.parametrize(
    ("cold", "hot", "message"),
    [
        (RAW, RAW, None),
        (RAW, [tuple(value - 0.05 for value in one) for one in RAW], None),
        (RAW, [tuple(2 * value for value in one) for one in RAW], "change with the temperature"),
        ([tuple(value + 12 for value in one) for one in RAW], RAW, "logits"),
        ([(-3.0, -0.01, -0.01)] * 3, [(-3.0, -0.01, -0.01)] * 3, "logits"),  # more than all of the probability
        ([(-3.0,)] * 3, [(-3.0,)] * 3, None),  # a server that names no other tokens
        ([], [], "no log-probabilities"),
    ],
)
def test_what_two_temperatures_tell_of_a_prompt(cold: Any, hot: Any, message: str | None) -> None:
    found = prompt_logprobs_fault(cold, hot)
    assert found is None if message is None else found is not None and message in found[0], found
