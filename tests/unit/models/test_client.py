"""The client against real HTTP servers: what it sends, what it reads, and when it tries again."""

import asyncio
import email.utils
import json
import socket
import time
from collections import Counter
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web
from pydantic import SecretStr

from tracefactory.core.errors import Interrupted, RunStopped
from tracefactory.core.model import ChatRequest, Completion, RequestFailed
from tracefactory.models.openai import OpenAISpec
from tracefactory.serving.client import ChatClient
from tracefactory.serving.failures import retry_after_seconds
from tracefactory.serving.fake_script import FakeScript
from tracefactory.serving.fake_server import FakeServer
from tracefactory.serving.logprobs import unpacked
from tracefactory.serving.managed import FixedEndpoint

GOOD = {
    "model": "served",
    "system_fingerprint": "fp",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "7"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 5, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 3}},
}


def ask(text="What is 4 + 3?", prefill=None, **params):
    messages = [{"role": "user", "content": text}]
    if prefill is not None:
        messages.append({"role": "assistant", "content": prefill})
    return ChatRequest(model_identity={}, messages=tuple(messages), params=params)


def message(**fields):
    return {**GOOD, "choices": [{"message": {"role": "assistant", **fields}, "finish_reason": "stop"}]}


@asynccontextmanager
async def client_of(*urls, key=None, **changes):
    spec = OpenAISpec.model_validate({"model": "m", "base_url": list(urls), "timeout_s": 20, **changes})
    client = ChatClient(spec, FixedEndpoint(urls), Path(), None if key is None else SecretStr(key), backoff_s=0.01)
    try:
        yield client
    finally:
        await client.close()


@asynccontextmanager
async def scripted(*replies):
    """Serve `replies` one after the other, the last one for ever: (status, body, headers) or a handler."""
    seen = []

    async def chat(http):
        seen.append({"headers": http.headers, "body": await http.json()})
        reply = replies[min(len(seen), len(replies)) - 1]
        if callable(reply):
            return await reply(http)
        status, body, headers = reply
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        return web.Response(status=status, body=data, headers={"Content-Type": "application/json", **headers})

    app = web.Application()
    app.router.add_post("/v1/chat/completions", chat)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/v1", seen
    finally:
        await runner.cleanup()


async def test_everything_a_server_says_is_kept():
    body = message(content="7", reasoning_content="4 and 3", refusal=None)
    body["choices"][0]["logprobs"] = {"content": [{"token": "7", "logprob": -0.5}]}
    async with scripted((200, body, {})) as (url, seen), client_of(url, extra={"top_k": 9}) as client:
        done = await client.complete(ask(seed=3, temperature=0.5))
    assert (done.content, done.reasoning, done.refusal, done.finish_reason) == ("7", "4 and 3", None, "stop")
    assert (done.prompt_tokens, done.completion_tokens, done.cached_tokens) == (5, 2, 3)
    assert (done.served_model, done.system_fingerprint, done.attempts) == ("served", "fp", 1)
    assert unpacked(done.logprobs) == ([b"7"], [-0.5])
    assert 0 < done.seconds < 20
    assert abs(done.created - time.time()) < 20
    assert seen[0]["body"] == {
        "model": "m",
        "messages": [{"role": "user", "content": "What is 4 + 3?"}],
        "seed": 3,
        "temperature": 0.5,
        "top_k": 9,
    }
    assert Completion.model_validate_json(done.model_dump_json()) == done


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"content": "7", "reasoning": "a"}, ("7", "a", None)),
        ({"content": "7", "reasoning_content": "a", "reasoning": "a"}, ("7", "a", None)),
        ({"content": None, "refusal": "no"}, ("", None, "no")),
        ({"content": None, "reasoning_content": "cut off"}, ("", "cut off", None)),
        ({"content": "lone \ud800 half", "reasoning": "\udfff"}, ("lone \ufffd half", "\ufffd", None)),
        ({"content": "whole \U0001f600"}, ("whole \U0001f600", None, None)),
    ],
)
async def test_messages_are_read_whatever_their_form(fields, expected):
    async with scripted((200, message(**fields), {})) as (url, _), client_of(url) as client:
        done = await client.complete(ask())
    assert (done.content, done.reasoning, done.refusal) == expected
    done.model_dump_json().encode("utf-8")


REFUSALS = {
    "400": ((400, {"error": {"message": "no such field"}}, {}), "bad_request"),
    "401": ((401, {"error": {"message": "bad key"}}, {}), "auth"),
    "403": ((403, {}, {}), "forbidden"),
    "404": ((404, {"error": {"message": "no such model"}}, {}), "not_found"),
    "422": ((422, {"detail": "unprocessable"}, {}), "bad_request"),
    "filter": ((400, {"error": {"message": "x", "code": "content_filter"}}, {}), "content_filter"),
    "long": ((400, {"error": {"message": "x", "code": "context_length_exceeded"}}, {}), "context_length"),
    "llama": (
        (400, {"error": {"message": "x", "code": 400, "type": "exceed_context_size_error"}}, {}),
        "context_length",
    ),
    "in a 200": ((200, {"error": {"message": "wrapped", "code": 401}}, {}), "auth"),
}


@pytest.mark.parametrize("case", REFUSALS)
async def test_a_refusal_is_not_repeated_and_stays_owed_until_the_model_answers(case):
    reply, kind = REFUSALS[case]
    async with scripted(reply, (200, GOOD, {}), reply) as (url, seen), client_of(url) as client:
        with pytest.raises(RequestFailed) as before:
            await client.complete(ask())
        await client.complete(ask())
        with pytest.raises(RequestFailed) as after:
            await client.complete(ask())
    assert len(seen) == 3
    assert (before.value.kind, after.value.kind, before.value.attempts) == (kind, kind, 1)
    assert before.value.retryable == (kind != "content_filter")
    assert after.value.retryable == (kind == "auth")


@pytest.mark.parametrize("status", [400, 401, 403, 404])
async def test_refusals_in_a_row_stop_the_run_also_after_good_answers(status):
    good, bad = (200, GOOD, {}), (status, {"error": {"message": "no"}}, {})
    async with scripted(good, *[bad] * 7, good, bad) as (url, _), client_of(url, concurrency=1) as client:
        outcomes = await asyncio.gather(*(client.complete(ask(seed=n)) for n in range(20)), return_exceptions=True)
        with pytest.raises(RunStopped, match="refused 8 requests in a row after answering others"):
            await client.complete(ask())
    assert [type(one) for one in outcomes[:16]] == [Completion, *[RequestFailed] * 7, Completion, *[RequestFailed] * 7]
    assert all(isinstance(one, RunStopped) for one in outcomes[16:])


@pytest.mark.parametrize(
    "reply",
    [
        (402, {"error": {"message": "Insufficient credits"}}, {}),
        (429, {"error": {"message": "pay first", "code": "insufficient_quota"}}, {}),
        (429, {"error": {"message": "pay first", "type": "insufficient_quota", "code": None}}, {}),
        (200, {"error": {"message": "pay first", "code": 402}}, {}),
    ],
)
async def test_a_run_without_credit_stops_at_once_with_the_remedy(reply):
    async with scripted(reply) as (url, seen), client_of(url) as client:
        with pytest.raises(RunStopped, match="add credit, then run the same command"):
            await client.complete(ask())
    assert len(seen) == 1


async def drop_before_headers(http):
    http.transport.close()
    return web.Response()


async def cut_off(http):
    data = json.dumps(GOOD).encode()
    response = web.StreamResponse(headers={"Content-Type": "application/json", "Content-Length": str(len(data))})
    await response.prepare(http)
    await response.write(data[:20])
    http.transport.close()
    return response


PASSING = {
    "408": ((408, {}, {}), "timeout"),
    "409": ((409, {}, {}), "conflict"),
    "429": ((429, {"error": {"message": "slow down"}}, {}), "rate_limited"),
    "500": ((500, b"<html>oops</html>", {"Content-Type": "text/html"}), "server_error"),
    "503": ((503, {}, {}), "overloaded"),
    "error in a 200": ((200, {"error": {"message": "upstream", "code": 502}}, {}), "server_error"),
    "no JSON": ((200, b"{ not json", {}), "bad_response"),
    "HTML": ((200, b"<html>login</html>", {"Content-Type": "text/html"}), "bad_response"),
    "no choices": ((200, {"choices": []}, {}), "bad_response"),
    "wrong types": ((200, message(content=[1]), {}), "bad_response"),
    "aborted": ((200, {**GOOD, "choices": [{"message": {"content": "7"}, "finish_reason": None}]}, {}), "server_error"),
    "dropped": (drop_before_headers, "connection"),
    "cut off": (cut_off, "connection"),
}


@pytest.mark.parametrize("case", PASSING)
async def test_a_failure_that_may_pass_is_tried_again(case):
    reply, kind = PASSING[case]
    sends = 2 if kind == "timeout" else 3  # a request that timed out may have been billed: it is sent once more
    async with scripted(*[reply] * (sends - 1), (200, GOOD, {})) as (url, seen), client_of(url) as client:
        assert (await client.complete(ask())).attempts == sends
        assert len(seen) == sends
    if kind in ("rate_limited", "overloaded"):  # they do not count as tries
        return
    async with scripted(reply) as (url, seen), client_of(url, retries=1) as client:
        with pytest.raises(RequestFailed) as caught:
            await client.complete(ask())
        assert (caught.value.kind, caught.value.attempts, caught.value.retryable) == (kind, 2, True)
        assert len(seen) == 2


async def test_a_429_does_not_count_as_a_try():
    slow = (429, {"error": {"message": "slow down"}}, {"Retry-After": "0.01"})
    async with scripted(*[slow] * 7, (200, GOOD, {})) as (url, _), client_of(url, retries=0) as client:
        assert (await client.complete(ask())).attempts == 8


async def test_silence_is_a_time_out_and_not_a_lost_connection():
    silent = FakeScript(rate_hang=1, hang_s=20)
    async with FakeServer(silent) as server, client_of(server.base_url, timeout_s=0.2, retries=1) as client:
        with pytest.raises(RequestFailed) as caught:
            await client.complete(ask())
    assert (caught.value.kind, caught.value.attempts) == ("timeout", 2)


async def test_the_wait_a_server_asks_for_is_kept():
    slow = (429, {}, {"Retry-After": "0.4"})
    async with scripted(slow, (200, GOOD, {})) as (url, _), client_of(url) as client:
        started = time.monotonic()
        await client.complete(ask())
        assert time.monotonic() - started >= 0.4


async def test_a_wait_longer_than_max_pause_stops_the_run():
    async with scripted((429, {}, {"Retry-After": "3600"})) as (url, seen), client_of(url) as client:
        with pytest.raises(RunStopped, match="asks to wait 3600 s, longer than max_pause_s: 1800"):
            await client.complete(ask())
    assert len(seen) == 1


async def test_the_wait_that_one_request_hears_holds_for_all():
    async with scripted((429, {}, {"Retry-After": "0.6"}), (200, GOOD, {})) as (url, seen), client_of(url) as client:
        first = asyncio.create_task(client.complete(ask(seed=0)))
        await asyncio.sleep(0.3)
        assert seen
        started = time.monotonic()
        await client.complete(ask(seed=1))
        assert time.monotonic() - started > 0.3
        assert "waits until" not in client.status.notice
        await first


async def test_a_dead_server_is_probed_and_stops_the_run_after_max_pause():
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        dead = f"http://127.0.0.1:{nobody.getsockname()[1]}/v1"
        async with client_of(dead, max_pause_s=2.0, retries=20) as client:
            outcomes = await asyncio.gather(*(client.complete(ask(seed=n)) for n in range(40)), return_exceptions=True)
    assert all(isinstance(one, RunStopped) for one in outcomes)  # no row fails because the server is dead


async def test_a_run_goes_on_by_itself_after_an_outage():
    down = (503, {}, {})
    async with scripted(*[down] * 22, (200, GOOD, {})) as (url, seen), client_of(url, concurrency=20) as client:
        done = await asyncio.gather(*(client.complete(ask(seed=n)) for n in range(60)))
        assert len(done) == 60
        assert len(seen) == 82


async def test_a_drained_client_does_not_wait_for_its_turn():
    async with scripted((429, {}, {"Retry-After": "60"})) as (url, seen), client_of(url) as client:
        waiting = asyncio.gather(*(client.complete(ask(seed=n)) for n in range(5)), return_exceptions=True)
        await asyncio.sleep(0.3)
        assert seen
        assert "waits until" in client.status.notice
        client.drain()
        assert all(isinstance(one, Interrupted) for one in await asyncio.wait_for(waiting, 2))


def test_retry_after_is_seconds_or_a_date():
    in_a_minute = email.utils.formatdate(time.time() + 60, usegmt=True)
    assert retry_after_seconds({"retry-after": "2.5"}) == 2.5
    assert retry_after_seconds({"retry-after": in_a_minute}) == pytest.approx(60, abs=2)
    assert retry_after_seconds({"retry-after": email.utils.formatdate(time.time() - 60, usegmt=True)}) == 0
    for said_nothing in ({}, {"retry-after": "soon"}, {"retry-after": "inf"}, {"retry-after": "nan"}):
        assert retry_after_seconds(said_nothing) is None


async def test_a_key_goes_to_the_server_and_nowhere_else(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-someone-else")
    refused = (401, {"error": {"message": "the key sk-secret-1 is unknown"}}, {})
    async with scripted(refused) as (url, seen):
        async with client_of(url, key="sk-secret-1") as client:
            with pytest.raises(RequestFailed) as caught:
                await client.complete(ask())
            assert "sk-secret-1" not in f"{caught.value} {caught.value!r} {vars(client)!r}"
        async with client_of(url) as client:
            with pytest.raises(RequestFailed):
                await client.complete(ask())
    assert seen[0]["headers"]["Authorization"] == "Bearer sk-secret-1"
    assert "sk-of-someone-else" not in seen[1]["headers"]["Authorization"]


async def test_no_more_requests_are_in_flight_than_the_model_allows():
    async with FakeServer(FakeScript(latency_s=0.01)) as server, client_of(server.base_url, concurrency=5) as client:
        await asyncio.gather(*(client.complete(ask(seed=seed)) for seed in range(40)))
        assert server.peak_in_flight == 5


async def test_work_goes_to_the_least_loaded_server_and_away_from_a_dead_one():
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        dead = f"http://127.0.0.1:{nobody.getsockname()[1]}/v1"
        async with FakeServer(FakeScript(latency_s=0.02)) as one, FakeServer(FakeScript(latency_s=0.02)) as two:
            async with client_of(dead, one.base_url, two.base_url, concurrency=6) as client:
                done = await asyncio.gather(*(client.complete(ask(seed=seed)) for seed in range(60)))
            assert one.received + two.received == 60
            assert min(one.received, two.received) >= 15
        # Only the requests sent before the first refusal was known met the dead server.
        assert sum(answer.attempts > 1 for answer in done) <= 6


@pytest.mark.parametrize(
    ("prefill", "output", "flags"),
    [
        ("plain", "so 7", set()),
        ("vllm", "so 7", {"continue_final_message", "add_generation_prompt"}),
        ("llama.cpp", "<think>\nso 7", set()),
    ],
)
async def test_a_prefill_is_continued_and_never_part_of_the_answer(prefill, output, flags):
    async with scripted((200, message(content=output), {})) as (url, seen), client_of(url, prefill=prefill) as client:
        assert (await client.complete(ask(prefill="<think>\n"))).content == "so 7"
        await client.complete(ask())
    assert set(seen[0]["body"]) - {"model", "messages"} == flags
    assert set(seen[1]["body"]) == {"model", "messages"}


async def test_text_that_is_not_utf8_fails_alone():
    async with scripted((200, GOOD, {})) as (url, seen), client_of(url) as client:
        with pytest.raises(RequestFailed) as caught:
            await client.complete(ask("half a \ud800 character"))
        assert (await client.complete(ask())).content == "7"
    assert caught.value.kind == "bad_request"
    assert len(seen) == 1


async def test_faults_change_neither_the_answers_nor_how_often_they_are_paid():
    faulty = FakeScript(rate_429=0.15, rate_500=0.15, rate_drop=0.15, accuracy=0.6, rate_truncate=0.1)
    calm = FakeScript(accuracy=0.6, rate_truncate=0.1)
    output = []
    for script in (faulty, calm):
        async with FakeServer(script) as server, client_of(server.base_url) as client:
            done = await asyncio.gather(*(client.complete(ask(seed=seed)) for seed in range(80)))
            output.append([(answer.content, answer.finish_reason) for answer in done])
            assert Counter(server.completed.values()) == {1: 80}
            assert server.received == sum(answer.attempts for answer in done) == 80 + server.faults.total()
            assert server.faults.keys() == ({"429", "500", "drop"} if script is faulty else set())
    assert output[0] == output[1]


@pytest.mark.parametrize("reasoning", ["reasoning_content", "inline"])
async def test_a_streamed_answer_equals_one_that_is_not_streamed(reasoning):
    script = FakeScript(reasoning=reasoning, rate_refuse=0.1, rate_truncate=0.2, rate_empty=0.1, rate_drop=0.1)
    answers = []
    for stream in (False, True):
        async with FakeServer(script) as server, client_of(server.base_url, stream=stream) as client:
            requests = [ask(seed=seed, logprobs=True) for seed in range(30)]
            done = await asyncio.gather(*(client.complete(one) for one in requests))
            answers.append([one.model_dump(exclude={"created", "seconds", "attempts"}) for one in done])
            assert server.completed.total() == 30
    assert answers[0] == answers[1]


async def test_only_long_answers_are_streamed_by_default():
    async with scripted((200, GOOD, {})) as (url, seen), client_of(url) as client:
        await client.complete(ask(max_tokens=4095))
        await client.complete(ask(max_tokens=4096))  # a server that does not stream is read all the same
    assert [one["body"].get("stream") for one in seen] == [None, True]


async def test_a_stream_that_still_writes_is_not_cut_and_a_silent_one_is():
    slow = FakeScript(token_s=0.05)
    async with FakeServer(slow) as server, client_of(server.base_url, stream=True, timeout_s=1, stall_s=1) as client:
        assert (await client.complete(ask())).seconds > 1
    dead = FakeScript(rate_stall=1, max_faults=1, hang_s=30)
    async with FakeServer(dead) as server, client_of(server.base_url, stream=True, stall_s=0.3) as client:
        done = await client.complete(ask())
        assert (done.attempts, server.faults["stall"]) == (2, 1)
