"""The canary: each planted fault in the first answers of a stage is found, and good answers have none."""

from __future__ import annotations

import time
from typing import Any

import pytest
from pydantic import ValidationError

from tracefactory.core.model import ChatRequest, Completion
from tracefactory.models.openai import OpenAISpec
from tracefactory.serving.canary import CHECKS, OF_ANY_STAGE, Answered, chosen, faults
from tracefactory.serving.reasoning_levels import ReasoningTokens, reasoning_body

LONG = "First I add the numbers one after the other, and then I check the sum by adding them in another order. "


def spec(**changes: Any) -> OpenAISpec:
    return OpenAISpec.model_validate({"model": "org/teacher", "base_url": "http://x/v1", **changes})


def asked(row: int = 0, seed: int = 0, **params: Any) -> ChatRequest:
    messages = ({"role": "user", "content": f"question {row}"},)
    return ChatRequest(model_identity={}, messages=messages, params={"temperature": 0.7, "seed": seed, **params})


def completion_with(content: str = "It is 7.", reasoning: str | None = None, **more: Any) -> Completion:
    given = {"finish_reason": "stop", "completion_tokens": 60, "served_model": "teacher-2026-01", **more}
    return Completion(content=content, reasoning=reasoning, created=time.time(), seconds=1.0, **given)


def found(answers: list[Answered], model: OpenAISpec | None = None) -> list[str]:
    return [fault.check for fault in faults(answers, model or spec())]


def four(*texts: Any, **more: Any) -> list[Answered]:
    """Return four answers: two pairs of siblings."""
    rows = [(0, 0), (0, 1), (1, 0), (1, 1)]
    parts = [texts[n % len(texts)] for n in range(4)]
    return [Answered(asked(*row), completion_with(*part, **more)) for row, part in zip(rows, parts, strict=True)]


GOOD = {
    "plain": four(("It is 7.",), ("The answer is 7.",)),
    "a separate field": four(("It is 7.", LONG), ("7", LONG * 2)),
    "tags": four((f"<think>\n{LONG}\n</think>\n\n7",), (f"<think>\n{LONG}2\n</think>\n\n7",)),
    "opened in the template": four((f"{LONG}\n</think>\n\n7",), (f"{LONG}2\n</think>\n\n7",)),
    "one of four cut off": [
        *four(("a",), ("b",))[:3],
        Answered(asked(3), completion_with("c", finish_reason="length")),
    ],
    "equal for one of two prompts": [
        Answered(asked(row, seed), completion_with(LONG if not row else f"{LONG}{seed}", completion_tokens=400))
        for row in range(2)
        for seed in range(2)
    ],
    "short and equal": four(("7",), completion_tokens=2),
    "refused once": [*four(("a",), ("b",))[:3], Answered(asked(3), completion_with("", refusal="no"))],
}


@pytest.mark.parametrize("case", GOOD)
def test_good_answers_have_no_fault(case: str) -> None:
    assert found(GOOD[case]) == []


FAULTS = {
    "empty": (four(("",)), {}),
    "truncated": (four((LONG,), (LONG * 2,), finish_reason="length"), {}),
    "reasoning": (four(("It is 7.",), ("7",)), {"reasoning": "high", "provider": "openrouter"}),
    "duplicate": (four((f"{LONG}\n\nIt is 7.", LONG), (f"x {LONG}\n\nIt is 7.", LONG)), {}),
    "unclosed": (four((f"<think>\n{LONG} It is 7.",), (f"<think>\n{LONG}7",)), {}),
    "answer": (four(("", LONG), ("", f"{LONG}2")), {}),
    "siblings": (four((LONG,), completion_tokens=400), {}),
    "logprobs": ([Answered(asked(logprobs=True), completion_with())], {}),
    "model": (four(("a",), ("b",), served_model="cheap-model"), {}),
}


@pytest.mark.parametrize("check", FAULTS)
def test_each_planted_fault_is_found_and_can_be_skipped(check: str) -> None:
    answers, changes = FAULTS[check]
    assert found(answers, spec(**changes)) == [check]
    assert found(answers, spec(**changes, skip_checks=[check])) == []
    (fault,) = faults(answers, spec(**changes))
    assert fault.seen
    assert fault.remedy


def test_every_check_has_a_planted_fault() -> None:
    assert set(FAULTS) == CHECKS


def test_reasoning_that_was_switched_off_is_a_fault() -> None:
    assert found(four(("7", LONG), ("7", f"{LONG}2")), spec(reasoning="off")) == ["reasoning"]


def test_short_answers_of_a_judge_are_not_looked_at_as_traces() -> None:
    answers = four(("", LONG), finish_reason="length")
    assert [one.check for one in faults(answers, spec(), OF_ANY_STAGE)] == []


@pytest.mark.parametrize(
    "served", ["teacher", "org/teacher", "teacher:free", "Teacher-2026-01-02", "/models/teacher/", "accounts/x/teacher"]
)
def test_names_that_providers_give_a_model_are_its_names(served: str) -> None:
    assert found(four(("a",), ("b",), served_model=served)) == []


def test_two_pairs_of_siblings_are_sent_first() -> None:
    requests = [asked(row, seed) for row in range(50) for seed in range(3)]
    first = chosen(requests)
    assert [(one.messages[0]["content"], one.params["seed"]) for one in first] == [
        ("question 0", 0),
        ("question 0", 1),
        ("question 1", 0),
        ("question 1", 1),
    ]
    assert [one.messages[0]["content"][-1] for one in chosen(requests[::3])] == ["0", "1", "2", "3"]
    assert chosen(requests[:1]) == requests[:1]


@pytest.mark.parametrize(
    ("provider", "level", "body"),
    [
        ("openai", "off", {"reasoning_effort": "none"}),
        ("somebody", "high", {"reasoning_effort": "high"}),
        ("OpenRouter", "low", {"reasoning": {"effort": "low"}}),
        ("openrouter", ReasoningTokens(tokens=2000), {"reasoning": {"max_tokens": 2000}}),
        ("deepseek", "off", {"thinking": {"type": "disabled"}}),
        ("vllm", "high", {"chat_template_kwargs": {"enable_thinking": True}}),
    ],
)
def test_a_level_becomes_the_parameter_of_the_provider(provider: str, level: Any, body: dict[str, Any]) -> None:
    assert reasoning_body(provider, level) == body
    model = spec(provider=provider, reasoning=level)
    assert body.items() <= model.body(asked()).items()
    assert model.identity()["reasoning"] == body
    assert "reasoning" not in spec(provider=provider).identity()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"provider": "vllm", "reasoning": "low"}, "can only turn reasoning on and off"),
        ({"provider": "openai", "reasoning": {"tokens": 100}}, "takes no budget of reasoning tokens"),
        ({"reasoning": "low", "extra": {"reasoning_effort": "high"}}, "which extra: sets too"),
    ],
)
def test_a_level_that_the_provider_lacks_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        spec(**changes)
