"""A server's log-probabilities are the model's own, or nothing is paid for."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests.unit.stages.conftest import RunStages, run_stages  # noqa: F401
from tracefactory.core.errors import RunStopped
from tracefactory.core.model import ChatRequest, RequestFailed
from tracefactory.serving.logprobs_mode import logprobs_fault

STAGES = """\
  - {id: problems, source: files, with: {paths: problems.jsonl, question: q, answer: a}}
  - {id: sampled, sample: chat, with: {model: teacher, prompt: math_long, samples: 6, logprobs: LOGPROBS}}
"""
PROBLEMS = '{"q": "What is 1 + 1?", "a": "2"}\n{"q": "What is 3 + 1?", "a": "4"}\n'


@pytest.mark.parametrize("samples_logprobs", ["true", "false"])
async def test_processed_ones_are_refused_before_anything_is_paid(
    run_stages: RunStages,  # noqa: F811
    samples_logprobs: str,
) -> None:
    stages, script = STAGES.replace("LOGPROBS", samples_logprobs), {"processed_logprobs": True, "seed": 3}
    if samples_logprobs == "false":  # nobody asks for them, so nobody minds
        assert (await run_stages(stages, PROBLEMS, teacher=script)).paid() == 12
        return
    with pytest.raises(RunStopped, match=r"teacher: .*processed.*--logprobs-mode raw_logprobs.*Nothing else") as stop:
        await run_stages(stages, PROBLEMS, teacher=script)
    assert "sampled" in str(stop.value)
    made = await run_stages(stages, PROBLEMS, teacher={"seed": 3})
    assert made.paid() == 12  # none of them was paid for before
    again = await run_stages(stages.replace("samples: 6", "samples: 7"), PROBLEMS, teacher={"seed": 3})
    assert again.paid() == 2


def answer(logprobs: dict[str, float] | None) -> dict[str, Any]:
    tops = None if logprobs is None else [{"token": one, "logprob": value} for one, value in logprobs.items()]
    content = [{"token": "a", "logprob": -1.0, "top_logprobs": tops}] if tops is not None else None
    return {"choices": [{"logprobs": {"content": content}}]}


async def fault_of(cold: Any, hot: Any) -> str | None:
    asked: list[ChatRequest] = []

    async def ask(request: ChatRequest) -> dict[str, Any]:
        asked.append(request)
        given = cold if request.params["temperature"] < 1 else hot
        if isinstance(given, RequestFailed):
            raise given
        return answer(given)

    first = ChatRequest(model_identity={"model": "m"}, messages=({"role": "user", "content": "?"},), sample_index=4)
    found = await logprobs_fault(first, ask)
    assert all(one.params["max_tokens"] == 1 and one.model_identity == {"model": "m"} for one in asked)
    return None if found is None else " ".join(found)


RAW = {"cat": -0.5, "dog": -1.5, "fish": -6.0}


@pytest.mark.parametrize(
    ("cold", "hot", "message"),
    [
        (RAW, RAW, None),
        (RAW, {**RAW, "fish": -5.8}, None),  # the noise of a busy server
        ({"cat": 0.0, "dog": -25.0}, {"cat": 0.0, "dog": -24.0}, None),  # a sure model
        (RAW, {"cat": -0.9, "dog": -1.15, "fish": -2.3}, "processed.*raw_logprobs"),
        ({"cat": 0.0, "dog": -9999.0}, {"cat": 0.0, "dog": -9999.0}, "cannot be told"),  # top-k 1
        ({"cat": 18.0, "dog": 12.0}, {"cat": 18.0, "dog": 12.0}, "logits"),
        ({}, {}, "cannot be told.*skip_checks"),
        (None, None, "cannot be told"),
        (RAW, {"cow": -1.0}, "cannot be told"),
        (RequestFailed("bad_request", "no top_logprobs", attempts=1, retryable=False), RAW, "no top_logprobs.*skip"),
    ],
)
async def test_what_two_temperatures_tell(cold: Any, hot: Any, message: str | None) -> None:
    found = await fault_of(cold, hot)
    assert found is None if message is None else re.search(message, found or ""), found


async def test_a_server_that_is_busy_settles_nothing() -> None:
    with pytest.raises(RequestFailed, match="busy"):
        await fault_of(RequestFailed("rate_limit", "busy", attempts=1, retryable=True), RAW)
