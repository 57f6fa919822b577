"""The fake teacher: what it answers is decided by the request alone, and what it did can be counted."""

import asyncio
import json
import sys

import aiohttp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tracefactory.core.environment import Environment
from tracefactory.core.errors import RunError, UserError
from tracefactory.core.model import ChatRequest
from tracefactory.core.processes import Child
from tracefactory.core.rows import Thinking
from tracefactory.models.fake import FakeSpec
from tracefactory.serving.client import ChatClient
from tracefactory.serving.fake_script import FakeScript, answer, evaluate, find_expression, pieces
from tracefactory.serving.fake_server import FakeServer
from tracefactory.text.reasoning import split_reasoning

SEEDS = range(300)


def body(question="What is 4 + 3 - 2?", prefill=None, **params):
    messages = [{"role": "user", "content": question}]
    if prefill is not None:
        messages.append({"role": "assistant", "content": prefill})
    return {"model": "fake", "messages": messages, **params}


def reply_of(script=None, **fields):
    return answer(body(**fields), script or FakeScript())


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("What is 4 + 3 - 2?", 5),
        ("State the final answer to the following arithmetic problem: 4 + 3 =", 7),
        ("Example: 1 + 1 = 2.\nNow: (4 + 3) * 2 = ?", 14),
        ("-5 + 3", -2),
        ("6 × 7", 42),
        ("8 ÷ 3", None),
        ("1 / 0", None),
        ("Tom has 3 apples.", None),
        ("(4 + 3", None),
        ("(" * 500 + "1 + 1" + ")" * 500, None),
        ("1" + " + 1" * 3000, 500),  # only the end of a question is read
    ],
)
def test_integer_arithmetic_is_solved(text, value):
    found = find_expression(text)
    assert (evaluate(found) if found is not None else None) == value


@given(st.text(alphabet="0123456789 +-*/().x×÷\n"))
def test_any_question_gets_an_answer(text):
    assert "boxed" in reply_of(question=text).message["content"]


@given(st.text())
def test_tokens_lose_nothing(text):
    assert "".join(pieces(text)) == text


def test_questions_that_are_no_arithmetic_get_a_stable_answer_that_differs_by_question():
    first = {reply_of(question="How far is the moon?", seed=seed).message["content"].split()[-1] for seed in range(20)}
    other = reply_of(question="How far is the sun?").message["content"].split()[-1]
    assert len(first) == 1
    assert other not in first


@pytest.mark.parametrize("accuracy", [0.0, 0.3, 0.8, 1.0])
def test_accuracy_is_the_share_of_right_answers(accuracy):
    right = sum(
        reply_of(FakeScript(accuracy=accuracy), seed=seed).message["content"].endswith("boxed{5}.") for seed in SEEDS
    )
    assert right / len(SEEDS) == pytest.approx(accuracy, abs=0.1)


def test_the_answer_is_decided_by_messages_parameters_and_script():
    first = reply_of(seed=1)
    assert first == reply_of(seed=1)
    assert first != reply_of(seed=2)
    assert first != reply_of(FakeScript(seed=1), seed=1)
    assert first == reply_of(FakeScript(rate_500=0.9, latency_s=9, hang_s=1), seed=1)
    assert first == answer({**body(seed=1), "model": "another"}, FakeScript())


def test_styles_follow_the_prompt_or_the_script():
    long, short = reply_of(), reply_of(question="Answer briefly: what is 4 + 3 - 2?")
    assert long.completion_tokens > 3 * short.completion_tokens
    assert "<think>" not in short.message["content"]
    assert reply_of(FakeScript(style="short")).completion_tokens < 40
    assert "<think>" in reply_of(FakeScript(style="long"), question="Briefly: 1 + 1?").message["content"]


@pytest.mark.parametrize(
    ("delivery", "prefill", "opened"),
    [
        ("reasoning_content", None, False),
        ("reasoning", None, False),
        ("inline", None, False),
        ("inline", "<think>\n", True),
        ("prefilled", None, True),
    ],
)
def test_every_way_of_delivering_reasoning_reads_the_same(delivery, prefill, opened):
    script = FakeScript(reasoning=delivery, style="long")
    message = answer(body(prefill=prefill), script).message
    field = message.get("reasoning_content") or message.get("reasoning")
    assert (field is not None) == delivery.startswith("reasoning")
    reasoning, final, thinking = split_reasoning(message["content"] or "", field, opened_in_prompt=opened)
    assert "7 - 2 = 5" in reasoning
    assert len(reasoning.split("\n\n")) >= 4
    assert final == "The answer is \\boxed{5}."
    assert thinking is Thinking.CLOSED


def test_a_wrong_answer_comes_from_a_wrong_step():
    wrong = reply_of(FakeScript(accuracy=0.0)).message["content"]
    value = wrong.rsplit("{", 1)[1].split("}")[0]
    assert value != "5"
    assert f"7 - 2 = {value}." in wrong


def test_max_tokens_cuts_and_says_so():
    whole = reply_of()
    cut = reply_of(max_tokens=20)
    assert (whole.finish_reason, cut.finish_reason) == ("stop", "length")
    assert cut.completion_tokens == 20
    assert split_reasoning(cut.message["content"], None, opened_in_prompt=False)[2] is Thinking.OPEN


def test_a_stop_string_ends_the_answer_before_it():
    assert reply_of(stop=["</think>"]).message["content"].rstrip().endswith("the result is 5.")
    assert reply_of(stop="</think>").finish_reason == "stop"


@pytest.mark.parametrize(
    ("rate", "spoilt"),
    [
        ("rate_truncate", lambda it: it.finish_reason == "length"),
        ("rate_empty", lambda it: it.message["content"] == ""),
        ("rate_refuse", lambda it: it.message.get("refusal") is not None),
    ],
)
def test_spoilt_answers_come_at_their_rate(rate, spoilt):
    script = FakeScript.model_validate({rate: 0.3})
    assert sum(spoilt(reply_of(script, seed=seed)) for seed in SEEDS) / len(SEEDS) == pytest.approx(0.3, abs=0.1)
    assert not any(spoilt(reply_of(seed=seed)) for seed in SEEDS)


async def test_stats_count_requests_answers_and_faults():
    async with FakeServer(FakeScript(rate_500=1, max_faults=1)) as server, aiohttp.ClientSession() as session:
        for expected in (500, 200, 200):
            async with session.post(f"{server.base_url}/chat/completions", json=body()) as response:
                assert response.status == expected
        async with session.post(f"{server.base_url}/chat/completions", json={"messages": []}) as response:
            assert response.status == 400
        async with session.get(f"{server.base_url.removesuffix('/v1')}/stats") as response:
            stats = await response.json()
    assert (stats["received"], stats["completed_total"], stats["faults"]) == (4, 2, {"500": 1})
    assert list(stats["completed"].values()) == [2]


async def test_a_429_carries_the_wait():
    script = FakeScript(rate_429=1, retry_after_s=7)
    async with (
        FakeServer(script) as server,
        aiohttp.ClientSession() as session,
        session.post(f"{server.base_url}/chat/completions", json=body()) as response,
    ):
        assert (response.status, response.headers["Retry-After"]) == (429, "7")


async def test_the_log_of_requests_survives_a_kill_and_the_server_comes_back(tmp_path):
    spec = FakeSpec(script=FakeScript(accuracy=0.5), request_log="requests.jsonl")
    endpoint = spec.endpoint(Environment(root=tmp_path, environ={}))
    client = ChatClient(spec, endpoint, tmp_path / "logs", backoff_s=0.01)
    request = ChatRequest(model_identity={}, messages=({"role": "user", "content": "4 + 3"},), params={"seed": 1})
    try:
        first = await client.complete(request)
        pid = endpoint.pid
        endpoint._child._process.kill()
        second = await client.complete(request)
        assert endpoint.pid not in (pid, None)
    finally:
        await client.close()
    assert endpoint.pid is None
    assert first.content == second.content
    events = [json.loads(line) for line in (tmp_path / "requests.jsonl").read_text().splitlines()]
    assert [event["event"] for event in events] == ["received", "completed"] * 2


async def test_a_server_that_keeps_dying_is_given_up_and_a_restart_is_told(tmp_path):
    spec = FakeSpec()
    endpoint = spec.endpoint(Environment(root=tmp_path, environ={}))
    endpoint._restarts = 1

    async def notices() -> set[str]:
        starting, found = asyncio.create_task(endpoint.start(tmp_path)), set()
        while not starting.done():
            found.add(endpoint.notice)
            await asyncio.sleep(0.005)
        await starting
        return found

    async def kill() -> None:
        endpoint._child._process.kill()
        endpoint._child._process.wait()

    try:
        assert any(one.endswith("is starting") for one in await notices())
        await kill()
        assert any(one.endswith("is starting: it died, restart 1 of 1") for one in await notices())
        assert endpoint.notice == ""
        await kill()
        with pytest.raises(RunError, match="died too often"):
            await endpoint.start(tmp_path)
    finally:
        await endpoint.stop()


async def test_the_command_line_serves_a_script_file(tmp_path):
    (tmp_path / "script.json").write_text('{"style": "short"}')
    argv = [sys.executable, "-m", "tracefactory.serving.fake_server", "--script", str(tmp_path / "script.json")]
    child = await Child.spawn("fake", argv, tmp_path / "log", ready_timeout_s=60)
    try:
        url = f"http://127.0.0.1:{child.facts['port']}/v1/chat/completions"
        async with aiohttp.ClientSession() as session, session.post(url, json=body()) as response:
            found = (await response.json())["choices"][0]["message"]["content"]
        assert found == "4 + 3 - 2 is 5. The answer is \\boxed{5}."
    finally:
        await child.stop()


@pytest.mark.parametrize("text", ['{"acuracy": 1}', '{"accuracy": 2}', "nowhere.json"])
def test_a_script_that_cannot_be_read_is_the_users_mistake(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"acuracy|accuracy|nowhere"):
        FakeScript.load(text)
