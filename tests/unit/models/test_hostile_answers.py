"""Whatever a server answers: a text that arrived is kept, what is stored is in range, and no other error is raised."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections import Counter
from typing import Any

import orjson
import pytest
from aiohttp import web
from pydantic import ValidationError

from tests.unit.models.hostile import ANTHROPIC, GEMINI, OPENAI, bodies
from tests.unit.models.test_client import ask, client_of, message, scripted
from tracefactory.core.completion import Completion
from tracefactory.core.model import RequestFailed
from tracefactory.core.prices import DECLARED, Price
from tracefactory.serving import anthropic, completions, gemini
from tracefactory.serving.batches.openai import OpenAIBatches
from tracefactory.serving.batches.protocol import BatchState
from tracefactory.serving.completions import UNREADABLE, read_completion
from tracefactory.serving.failures import AttemptFailed
from tracefactory.serving.streaming import lines_of, read_stream

MAPPED = {"openai": lambda answer: answer, "anthropic": anthropic.chat_answer, "gemini": gemini.chat_answer}
COUNTS = ("prompt_tokens", "completion_tokens", "cached_tokens", "reasoning_tokens")


def changed(answer: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """Return a copy of an answer with another value at a path such as "choices.0.message.content"."""
    copy = json.loads(json.dumps(answer))
    *head, last = [int(one) if one.isdigit() else one for one in path.split(".")]
    inside = copy
    for key in head:
        inside = inside[key]
    inside[last] = value
    return copy


def read(answer: Any) -> Completion:
    return read_completion(ask(), answer, False, 1, 0.1)


@pytest.mark.parametrize("count", [10**30, 10**9 + 1, -1, True, 1.5, float("nan"), "5", [], {}])
@pytest.mark.parametrize("name", COUNTS)
def test_a_count_out_of_range_is_unknown_and_costs_no_text(name: str, count: Any) -> None:
    group = {"cached_tokens": "prompt_tokens_details.", "reasoning_tokens": "completion_tokens_details."}
    done = read(changed(OPENAI, f"usage.{group.get(name, '')}{name}", count))
    assert (done.content, done.reasoning, getattr(done, name)) == ("The answer is 7.", "4 and 3.", 0)
    orjson.dumps(done.model_dump(mode="json"))


@pytest.mark.parametrize("usage", [None, [], "many", 7])
def test_usage_of_another_form_is_unknown(usage: Any) -> None:
    done = read({**OPENAI, "usage": usage})
    assert (done.content, [getattr(done, name) for name in COUNTS]) == ("The answer is 7.", [0, 0, 0, 0])
    assert not done.reports_usage


def test_an_unknown_count_of_a_text_has_no_cost() -> None:
    from tracefactory.models.openai import OpenAISpec

    spec = OpenAISpec.model_validate({"model": "m", "base_url": "http://x/v1", "price": {"input": 1, "output": 2}})
    price = Price(source=DECLARED, input=1, output=2)
    assert spec.cost(read(OPENAI), price) is not None
    for name in ("prompt_tokens", "completion_tokens"):
        assert spec.cost(read(changed(OPENAI, f"usage.{name}", 10**30)), price) is None


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "ab"),
        (["a", "b"], "ab"),
        ([{"type": "text", "text": "a"}, {"type": "image"}, 3], "a"),
        ({"type": "text", "text": "a"}, "a"),
        ([], ""),
    ],
)
def test_a_text_in_parts_is_kept(content: Any, expected: str) -> None:
    assert read(changed(OPENAI, "choices.0.message.content", content)).content == expected


def test_thinking_among_the_parts_is_reasoning() -> None:
    parts = [{"type": "thinking", "thinking": [{"type": "text", "text": "4 and 3."}]}, {"type": "text", "text": "7"}]
    done = read(message(content=parts))
    assert (done.content, done.reasoning) == ("7", "4 and 3.")


@pytest.mark.parametrize("content", [7, True, 1.5, {"a": 1}, [1], [{"text": 3}]])
def test_content_that_is_no_text_is_a_failure(content: Any) -> None:
    with pytest.raises(AttemptFailed, match="unexpected format"):
        read(changed(OPENAI, "choices.0.message.content", content))


@pytest.mark.parametrize("reasoning", [7, {"a": 1}, [1]])
def test_reasoning_that_is_no_text_costs_no_content(reasoning: Any) -> None:
    done = read(changed(OPENAI, "choices.0.message.reasoning_content", reasoning))
    assert (done.content, done.reasoning) == ("The answer is 7.", None)


@pytest.mark.parametrize("reason", [7, True, ["stop"], {"a": 1}, ""])
def test_a_finish_reason_that_is_no_text_is_unknown(reason: Any) -> None:
    done = read(changed(OPENAI, "choices.0.finish_reason", reason))
    assert (done.content, done.finish_reason) == ("The answer is 7.", "unknown")


@pytest.mark.parametrize(
    "logprobs",
    [7, [], {"content": 7}, {"content": [{"token": "7"}]}, {"content": [{"token": 7, "logprob": -1}]},
     {"content": [{"token": "7", "bytes": 10**12, "logprob": -1}]}, {"content": [{"token": "7", "logprob": "x"}]},
     {"content": [{"token": "7", "logprob": float("nan")}]}, {"content": [{"token": "7", "logprob": 10**400}]}],
)  # fmt: skip
def test_log_probabilities_that_cannot_be_read_cost_no_text(logprobs: Any) -> None:
    done = read({**OPENAI, "choices": [{**OPENAI["choices"][0], "logprobs": logprobs}]})  # type: ignore[index]
    assert (done.content, done.logprobs) == ("The answer is 7.", None)


@pytest.mark.parametrize(
    "fields",
    [{name: value} for name in COUNTS for value in (-1, 10**9 + 1, True, 1.0, "5")]
    + [{"created": float("nan")}, {"created": -1.0}, {"seconds": float("inf")}, {"attempts": -1}, {"content": None},
       {"content": "\ud800"}, {"finish_reason": None}],
)  # fmt: skip
def test_a_completion_out_of_range_cannot_be_made(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Completion(**{"content": "", "finish_reason": "stop", "created": 1.0, "seconds": 1.0, **fields})


def test_counts_of_other_protocols_are_read_alike() -> None:
    for path in ("input_tokens", "cache_read_input_tokens", "cache_creation_input_tokens", "output_tokens"):
        done = read(anthropic.chat_answer(changed(ANTHROPIC, f"usage.{path}", 10**30)))
        assert (done.content, done.reasoning) == ("The answer is 7.", "4 and 3.")
        assert (done.completion_tokens if path == "output_tokens" else done.prompt_tokens) == 0
    for path in ("promptTokenCount", "candidatesTokenCount", "thoughtsTokenCount"):
        done = read(gemini.chat_answer(changed(GEMINI, f"usageMetadata.{path}", "many")))
        assert (done.content, done.reasoning) == ("The answer is 7.", "4 and 3.")
        assert (done.prompt_tokens if path == "promptTokenCount" else done.completion_tokens) == 0


async def test_json_that_is_nested_deeply_is_a_failed_attempt() -> None:
    deep = b"[" * 100_000 + b"]" * 100_000
    for status in (200, 500):
        async with scripted((status, deep, {})) as (url, _), client_of(url, retries=0) as client:
            with pytest.raises(RequestFailed) as failed:
                await client.complete(ask())
        assert failed.value.kind == ("bad_response" if status == 200 else "server_error")


@pytest.mark.parametrize("streams", [False, True])
@pytest.mark.parametrize("zipped", [False, True])
async def test_a_body_without_end_is_refused_while_it_is_read(
    monkeypatch: pytest.MonkeyPatch, streams: bool, zipped: bool
) -> None:
    monkeypatch.setattr(completions, "MOST_BYTES", 1 << 20)
    block, sent = b" " * (1 << 16), Counter[str]()

    async def endless(http: web.Request) -> web.StreamResponse:
        kind = "text/event-stream" if streams else "application/json"
        headers = {"Content-Type": kind, **({"Content-Encoding": "gzip"} if zipped else {})}
        answer = web.StreamResponse(headers=headers)
        await answer.prepare(http)
        if zipped:
            await answer.write(gzip.compress(block * 64))
        for _ in range(0 if zipped else 2000):
            await answer.write(block)
            sent["blocks"] += 1
        return answer

    async with scripted(endless) as (url, _), client_of(url, retries=0, stream=streams) as client:
        with pytest.raises(RequestFailed, match="was not read further") as failed:
            await client.complete(ask())
    assert failed.value.kind == "bad_response"
    assert sent["blocks"] < 500


async def _stream_of(*events: Any) -> Any:
    async def chunks() -> Any:
        for event in events:
            yield b"data: " + json.dumps(event).encode() + b"\n\n"

    return await read_stream(chunks(), lambda: None)


@pytest.mark.parametrize(
    "event", [7, [], "x", {"choices": 7}, {"choices": [7]}, {"choices": [{"delta": 7}]},
              {"choices": [{"delta": {"content": 7}}]}],
)  # fmt: skip
async def test_an_event_of_another_form_is_no_crash(event: Any) -> None:
    with pytest.raises(ValueError):
        read(await _stream_of({"choices": [{"delta": {"content": "a"}, "finish_reason": "stop"}]}, event) or [])


async def test_a_streamed_text_survives_what_is_wrong_beside_it() -> None:
    first = {"choices": [{"delta": {"content": "The ", "reasoning": [{"text": "4"}]}, "logprobs": 7}], "usage": 3}
    last = {"choices": [{"delta": {"content": [{"type": "text", "text": "end"}]}, "finish_reason": "stop"}]}
    done = read(await _stream_of(first, last))
    assert (done.content, done.reasoning, done.logprobs, done.prompt_tokens) == ("The end", "4", None, 0)


async def test_a_line_without_end_is_read_in_linear_time() -> None:
    async def chunks() -> Any:
        for _ in range(1 << 15):
            yield b"x" * 1024
        yield b"\nend"

    found = [line async for line in lines_of(chunks())]
    assert [len(line) for line in found] == [1 << 25, 3]


def test_numbers_of_a_batch_out_of_range_are_unknown() -> None:
    state = BatchState("b", total=-1, succeeded=True, failed="2", usage=(1, 10**30), ends_at=float("nan"))  # type: ignore[arg-type]
    assert (state.total, state.succeeded, state.failed, state.usage, state.ends_at) == (None,) * 5


async def test_a_batch_line_whose_key_is_no_text_is_a_damaged_line() -> None:
    class Http:
        async def lines(self, path: str) -> Any:
            yield b'{"custom_id": ["a"], "response": {"status_code": 200, "body": {}}}'

    found = [line async for line in OpenAIBatches(Http(), "m", "24h").read("file")]  # type: ignore[arg-type]
    assert [(line.key, line.answer) for line in found] == [("", None)]


@pytest.mark.parametrize("protocol", MAPPED)
def test_mutated_responses_are_completions_in_range_or_failed_attempts(protocol: str) -> None:
    outcomes = Counter[str]()
    for body in bodies(protocol, 700, seed=16):
        try:
            answer = json.loads(body)
        except (ValueError, RecursionError):
            outcomes["no JSON"] += 1
            continue
        try:
            done = read(MAPPED[protocol](answer))
        except (AttemptFailed, *UNREADABLE):
            outcomes["failed"] += 1
            continue
        outcomes["kept"] += 1
        stored = orjson.loads(orjson.dumps(done.model_dump(mode="json")))
        assert Completion.model_validate(stored) == done
    assert outcomes["kept"] > 200
    assert outcomes["failed"] > 50
    assert outcomes.total() == 700


async def test_mutated_responses_over_http_are_completions_or_failed_requests() -> None:
    replies = [(200, body.encode("utf-8", "surrogatepass"), {}) for body in bodies("openai", 150, seed=6)]
    outcomes = Counter[str]()
    async with scripted(*replies) as (url, _), client_of(url, retries=0, max_pause_s=0.1) as client:
        for _ in replies:
            try:
                await asyncio.wait_for(client.complete(ask()), 20)
                outcomes["kept"] += 1
            except RequestFailed as failed:
                outcomes[failed.kind] += 1
    assert outcomes.keys() <= {"kept", "bad_response", "server_error"}
    assert outcomes["kept"] > 40
    assert outcomes.total() == 150
