"""What completions cost: the arithmetic, the look-up, and that an unknown price is never zero."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from tracefactory.config import load_pipeline
from tracefactory.core import prices
from tracefactory.core.environment import Environment
from tracefactory.core.errors import UserError
from tracefactory.core.model import MODELS, ChatRequest, Completion, ModelSpec
from tracefactory.core.prices import DeclaredPrice, Price, billed, bills_of, cost_of, dollars, looked_up
from tracefactory.engine.costs import unpriced
from tracefactory.serving.completions import read_completion

NOWHERE = Environment(environ={})


def spec(use: str = "openai", **fields: Any) -> ModelSpec:
    hosted = {"model": "m", "base_url": "http://127.0.0.1:1/v1"} if use == "openai" else {}
    found: ModelSpec = MODELS.get(use).model_validate({**hosted, **fields})
    return found


def completion(**fields: Any) -> Completion:
    return Completion(content="x", finish_reason="stop", created=0.0, seconds=0.0, **fields)


def cost(model: ModelSpec, **usage: Any) -> float | None:
    return model.cost(completion(**usage), model.price_used(NOWHERE))


@pytest.mark.parametrize(
    ("price", "usage", "expected"),
    [
        ({"input": 2, "output": 8}, {}, 1000 * 2 + 500 * 8),
        ({"input": 2, "output": 8}, {"cached_tokens": 400, "reasoning_tokens": 300}, 1000 * 2 + 500 * 8),
        ({"input": 2, "output": 8, "cached": 0.5}, {"cached_tokens": 400}, 600 * 2 + 400 * 0.5 + 500 * 8),
        ({"input": 2, "output": 8, "reasoning": 4}, {"reasoning_tokens": 300}, 1000 * 2 + 200 * 8 + 300 * 4),
        ({"input": 2, "output": 8, "cached": 0}, {"cached_tokens": 5000}, 500 * 8),  # no more than the prompt has
        ({"input": 2, "output": 8}, {"batched": True}, (1000 * 2 + 500 * 8) * 0.5),
        ({"input": 2, "output": 8, "batch": 0.7}, {"batched": True}, (1000 * 2 + 500 * 8) * 0.7),
        ({"gpu_hour": 3}, {}, 0),  # its tokens have no bill
    ],
)
def test_a_declared_price_is_per_million_tokens(price: Any, usage: Any, expected: float) -> None:
    model = spec(price=price)
    assert cost(model, prompt_tokens=1000, completion_tokens=500, **usage) == pytest.approx(expected / 1e6)
    assert model.price_used(NOWHERE).source == "declared"


def test_the_worst_case_is_no_less_than_any_cost() -> None:
    dear = Price(source="declared", input=1.0, output=2.0, cached=3.0, reasoning=5.0, request=0.01)
    assert dear.at_most(1000, 100) == pytest.approx(0.01 + (1000 * 3 + 100 * 5) / 1e6)
    assert dear.at_most(1000, 100, requests=10) == pytest.approx(0.1 + (1000 * 3 + 100 * 5) / 1e6)


def test_what_is_not_reported_has_no_cost() -> None:
    """A server that tells no usage would be free; every prompt has tokens."""
    assert cost(spec(price={"input": 2, "output": 8})) is None
    assert cost(spec("fake", price={"input": 0, "output": 0})) == 0.0


def test_an_unknown_price_is_not_zero_and_no_bill_is_not_unknown() -> None:
    assert spec().price_used(NOWHERE) == Price(source="unknown")
    assert cost(spec(), prompt_tokens=10, completion_tokens=10) is None
    assert Price(source="unknown").at_most(10, 10) is None
    assert cost(spec("fake"), prompt_tokens=10, completion_tokens=10) == 0.0
    assert spec("fake").price_used(NOWHERE).source == "none"
    assert dollars(None) == dollars(0.0, unpriced=3, requests=3) == "unknown"
    assert dollars(1.5, unpriced=3, requests=5) == "at least 1.5000"
    assert dollars(0.0, unpriced=0, requests=3) == "0.0000"


@pytest.mark.parametrize(
    "wrong", [{"input": 1}, {"output": 1}, {"cached": 1}, {"batch": 0.5}, {"input": -1, "output": 1}, {"unit": 1}]
)
def test_half_a_price_is_refused(wrong: Any) -> None:
    with pytest.raises(ValidationError):
        DeclaredPrice.model_validate(wrong)


def test_a_hosted_model_is_looked_up_at_its_provider() -> None:
    from genai_prices import Usage, calc_price

    found = looked_up("gpt-4o", "", "https://api.openai.com/v1")
    assert found.source.startswith("genai-prices ")
    listed = calc_price(Usage(input_tokens=1000, output_tokens=10), "gpt-4o", provider_id="openai").total_price
    assert found.cost(1000, 10) == pytest.approx(float(listed))
    assert looked_up("gpt-4o", "openai", "http://127.0.0.1:1/v1") == found
    # Of the same name somewhere else nobody knows the price.
    assert looked_up("gpt-4o", "", "http://127.0.0.1:1/v1").is_unknown
    assert looked_up("no-such-model", "openai", "").is_unknown
    assert looked_up("gpt-4o", "no-such-provider", "").is_unknown


def test_a_looked_up_price_depends_on_the_length_of_the_prompt() -> None:
    from genai_prices import Usage, calc_price

    for prompt in (1000, 300_000):
        usage = Usage(input_tokens=prompt, output_tokens=1000)
        listed = float(calc_price(usage, "gemini-2.5-pro", provider_id="google").total_price)
        assert looked_up("gemini-2.5-pro", "google", "", prompt).cost(prompt, 1000) == pytest.approx(listed)


def test_a_declared_price_wins_and_without_the_package_it_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    hosted = {"model": "gpt-4o", "base_url": "https://api.openai.com/v1"}
    assert spec(**hosted, price={"input": 1, "output": 1}).price_used(NOWHERE).source == "declared"
    assert not spec(**hosted).price_used(NOWHERE).is_unknown
    monkeypatch.setattr(prices, "has_price_list", lambda: False)
    assert spec(**hosted).price_used(NOWHERE).is_unknown


def record(price: Any = None, *, cost: float | None, model: str = "m/1", provider: str = "", tokens: int = 10) -> Any:
    stored = {} if price is None else {"price": price}
    usage = {"prompt_tokens": tokens, "completion_tokens": tokens}
    return {
        "request": {"model_identity": {"model": model, "provider": provider}},
        "completion": usage,
        "cost": cost,
        **stored,
    }


def test_completions_are_added_up_by_model_and_price() -> None:
    declared, unknown = Price(source="declared", input=1, output=2).stored(), Price(source="unknown").stored()
    records = [record(declared, cost=0.5), record(declared, cost=0.25), record(unknown, cost=None)]
    records += [record(cost=0.0), record(cost=0.0, provider="fake"), record(cost=2.0)]  # stored by version 0.2
    found = {one.price: (one.model, one.requests, one.cost, one.unpriced) for one in bills_of(billed(records))}
    assert found == {
        "declared: input 1, output 2": ("m/1", 2, 0.75, 0),
        "unknown": ("m/1", 2, 0.0, 2),
        "none": ("m/1", 1, 0.0, 0),
        "declared, stored by version 0.2": ("m/1", 1, 2.0, 0),
    }
    assert [cost_of(one) for one in records] == [0.5, 0.25, None, None, 0.0, 2.0]


def test_the_usage_of_an_answer_is_read_with_cached_and_reasoning_tokens() -> None:
    usage = {
        "prompt_tokens": 100,
        "completion_tokens": 50,
        "prompt_tokens_details": {"cached_tokens": 40},
        "completion_tokens_details": {"reasoning_tokens": 30},
    }
    answer = {"choices": [{"message": {"content": "a"}, "finish_reason": "stop"}], "usage": usage}
    request = ChatRequest(model_identity={"model": "m"}, messages=({"role": "user", "content": "q"},))
    found = read_completion(request, answer, False, 1, 0.1)
    assert (found.cached_tokens, found.reasoning_tokens) == (40, 30)
    assert read_completion(request, {**answer, "usage": None}, False, 1, 0.1).reasoning_tokens == 0


PIPELINE = """\
name: sums
version: "1"
budget: {{usd: 5, tokens: 1000, wall: 1h30m}}
models:
  teacher: {{{model}}}
stages:
  - {{id: problems, source: reasoning_gym, with: {{size: 2, tasks: [{{task: chain_sum}}]}}}}
  - {{id: long, sample: chat, with: {{model: teacher, prompt: long}}}}
"""
HOSTED = 'use: openai, model: m, base_url: "http://127.0.0.1:1/v1"'


def pipeline(root: Path, model: str, *sets: str) -> Any:
    for folder in ("pipelines", "prompts"):
        (root / folder).mkdir(exist_ok=True)
    (root / "prompts" / "long.md").write_text("---\nstyle: long\n---\n{{ question }}\n")
    (root / "pipelines" / "sums.yaml").write_text(PIPELINE.format(model=model))
    return load_pipeline(root / "pipelines" / "sums.yaml", sets=sets, environ={})


def test_prices_and_caps_are_in_the_pipeline_and_in_no_identity(tmp_path: Path) -> None:
    priced = pipeline(tmp_path, f"{HOSTED}, price: {{input: 1, output: 2}}, budget: {{requests: 7}}")
    assert [str(cap) for cap in priced.caps] == ["5.0000 US dollars", "1,000 tokens", "teacher: 7 requests"]
    assert priced.budget.wall_s == 5400
    bare = pipeline(tmp_path, HOSTED)
    assert priced.models["teacher"].identity() == bare.models["teacher"].identity()
    assert pipeline(tmp_path, HOSTED, "budget.usd=7").budget.usd == 7


@pytest.mark.parametrize(
    ("model", "printed"),
    [
        (f"{HOSTED}, budget: {{wall: 2h}}", "wall is a cap of the whole pipeline"),
        (f"{HOSTED}, price: {{input: 1}}", "output is missing"),
        (f"{HOSTED}, price: {{inptu: 1, output: 1}}", "did you mean 'input'?"),
        (f"{HOSTED}, price_out: 1, price: {{input: 1, output: 1}}", "write price: {input: 0.0, output: 1} alone"),
        (f"{HOSTED}, price_out: cheap", "price.output must be a number"),
    ],
)
def test_mistakes_in_prices_and_caps_are_named(tmp_path: Path, model: str, printed: str) -> None:
    with pytest.raises(UserError) as raised:
        pipeline(tmp_path, model)
    assert printed in str(raised.value)


def test_prices_of_version_0_2_mean_what_they_meant(tmp_path: Path) -> None:
    former = pipeline(tmp_path, f"{HOSTED}, price_out: 2.0").models["teacher"]
    assert former.price == DeclaredPrice(input=0, output=2)
    both = pipeline(tmp_path, f"{HOSTED}, price_in: 1, price_out: 2").models["teacher"]
    assert both.price == DeclaredPrice(input=1, output=2)


def test_a_cap_in_dollars_needs_the_price_of_every_model(tmp_path: Path) -> None:
    (mistake,) = unpriced(pipeline(tmp_path, HOSTED), ["teacher"])
    assert "model 'teacher' has no price" in mistake.message
    assert "price: {input: ..., output: ...}" in (mistake.hint or "")
    assert not unpriced(pipeline(tmp_path, HOSTED, "budget={tokens: 5}"), ["teacher"])
    assert not unpriced(pipeline(tmp_path, f"{HOSTED}, price: {{input: 1, output: 2}}"), ["teacher"])
    assert not unpriced(pipeline(tmp_path, "use: fake"), ["teacher"])
    loaded = pipeline(tmp_path, "use: fake")
    held = MODELS.get("vllm").model_validate({"model": "./weights", "gpus": 2})
    with_gpus = loaded.model_copy(update={"models": {"teacher": held}})
    assert "holds GPUs without a price" in unpriced(with_gpus, ["teacher"])[0].message
