"""What a worker spends: worst cases, GPU-hours, attempts whose answer is lost, and the warning at 80%."""

from __future__ import annotations

import asyncio
import shlex
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.unit.test_prices import pipeline
from tracefactory.cli.options import with_budget
from tracefactory.config import load_pipeline
from tracefactory.core.budget import attempt_lost
from tracefactory.core.environment import Environment
from tracefactory.core.errors import BudgetReached, Interrupted
from tracefactory.core.model import ChatRequest, Completion, ModelSpec, RequestFailed
from tracefactory.core.prices import Price
from tracefactory.core.stage import AtMost
from tracefactory.engine import spending
from tracefactory.engine.caps import BudgetWatch, ended, spend_of
from tracefactory.engine.costs import Due, planned_caps
from tracefactory.engine.spending import Spending
from tracefactory.store.claims import Claims
from tracefactory.store.damage import Damage
from tracefactory.store.spend import Amount, Ledger, Writer

Make = Callable[..., Spending]
NOWHERE = Environment(environ={})
REQUEST = ChatRequest(
    model_identity={"model": "m"}, messages=({"role": "user", "content": "What is 2 + 3?"},), params={"max_tokens": 100}
)
DONE = Completion(content="5", finish_reason="stop", prompt_tokens=9, completion_tokens=1, created=0.0, seconds=0.0)


@pytest.fixture
async def make(tmp_path: Path) -> AsyncIterator[Make]:
    claims, made = Claims(tmp_path / "claims"), []

    def spend(*sets: str, model: str = "use: fake, price: {input: 10, output: 20}") -> Spending:
        loaded = pipeline(tmp_path, model, "budget={}", *sets)
        made.append(Spending(loaded, tmp_path, "run", lambda: claims, lambda: False))
        return made[-1]

    yield spend
    for one in made:
        await one.close()
    claims.close()


def total(one: Spending) -> Amount:
    found = Amount()
    for amount in one.ledger.totals().values():
        found = found.plus(amount)
    return found


async def test_a_request_is_reserved_at_its_worst_and_settled_at_what_it_took(make: Make) -> None:
    spent = make()
    async with spent.request("teacher", REQUEST, NOWHERE) as paid:
        worst = total(spent)
        assert worst.prompt_tokens >= len("What is 2 + 3?")  # every byte may be a token
        assert worst.completion_tokens == 100
        assert worst.usd == pytest.approx((worst.prompt_tokens * 10 + 100 * 20) / 1e6)
        cost, price = paid.cost(DONE)
        paid.settle(DONE)
    assert (cost, price.source) == (pytest.approx((9 * 10 + 20) / 1e6), "declared")
    assert total(spent).usd == pytest.approx(cost)
    assert spend_of(spent.pipeline, spent.root, "run")[0].requests == 1


async def test_what_brought_no_answer_is_given_back_and_what_may_be_billed_is_not(make: Make) -> None:
    spent = make()
    for error in (RequestFailed("quota", "none", attempts=1, retryable=True), Interrupted()):
        with pytest.raises(type(error)):
            async with spent.request("teacher", REQUEST, NOWHERE):
                raise error
    assert total(spent) == Amount()
    async with spent.request("teacher", REQUEST, NOWHERE) as paid:
        await attempt_lost()
        paid.settle(DONE)
    assert total(spent).requests == 2
    assert total(spent).completion_tokens == 101
    with pytest.raises(asyncio.CancelledError):
        async with spent.request("teacher", REQUEST, NOWHERE):
            raise asyncio.CancelledError
    assert total(spent).requests == 3


async def test_a_server_that_reports_no_usage_is_counted_at_the_worst(make: Make) -> None:
    spent = make()
    async with spent.request("teacher", REQUEST, NOWHERE) as paid:
        unreported = DONE.model_copy(update={"prompt_tokens": 0, "completion_tokens": 0})
        cost, _ = paid.cost(unreported)
        paid.settle(unreported)
    assert cost is None
    assert total(spent).completion_tokens == 100


async def test_a_request_waits_for_those_in_flight_and_then_goes_or_ends_the_run(make: Make) -> None:
    spent = make("budget.tokens=350")  # room for one worst case of about 200 tokens

    async def send(answer: Completion) -> None:
        async with spent.request("teacher", REQUEST, NOWHERE) as paid:
            await asyncio.sleep(0.3)
            paid.settle(answer)

    small = DONE.model_copy(update={"completion_tokens": 11})
    await asyncio.wait_for(asyncio.gather(*(send(small) for _ in range(5))), 20)
    assert total(spent).requests == 5
    with pytest.raises(BudgetReached, match=r"350 tokens: .* tokens are spent, and the next request can take"):
        await asyncio.gather(*(send(DONE) for _ in range(50)))
    assert total(spent).number("tokens") <= 350


async def test_gpu_hours_are_counted_and_capped(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spending, "GPU_PERIOD_S", 0.2)
    spent = make("budget.gpu_hours=0.001", model="use: fake, price: {gpu_hour: 3}")  # 1.2 s of 3 GPUs
    stopped: list[BudgetReached] = []
    spent.meter(lambda: {"teacher": 3}, stopped.append)
    started = asyncio.get_running_loop().time()
    while not stopped:
        assert asyncio.get_running_loop().time() - started < 30
        await asyncio.sleep(0.05)
    held = asyncio.get_running_loop().time() - started
    assert held >= 0.8
    assert "0.0010 GPU-hours" in str(stopped[0])
    found = total(spent)
    assert found.gpu_hours <= 3 * (held + 0.5) / 3600
    assert found.usd == pytest.approx(3 * found.gpu_hours)


async def test_most_of_a_cap_is_said_once(make: Make) -> None:
    spent: Any = make("budget.requests=10", "models.teacher.budget.usd=100")
    watch = BudgetWatch(spent.pipeline, spent.root, 0.0)
    printed = []
    for _ in range(10):
        async with spent.request("teacher", REQUEST, NOWHERE) as paid:
            paid.settle(DONE)
        printed.append(list(watch.warnings()))
    watch.close()
    assert [bool(one) for one in printed] == [False] * 7 + [True, False, False]
    assert printed[7] == ["budget: 80% of the cap 10 requests are spent (8 requests)"]


async def test_at_a_cap_the_command_to_go_on_has_the_options_of_the_run(make: Make) -> None:
    spent: Any = make("budget.requests=10", "version=2")
    pipeline = spent.pipeline.model_copy(update={"limit": 5})
    told = str(ended(pipeline, spent.root, BudgetReached(str(pipeline.caps[0]))))
    command = told.split("To go on: ")[1].split(". To publish")[0]
    words = shlex.split(command.replace("\\\n", " "))
    assert words[:3] == ["tracefactory", "run", pipeline.written.file]
    options = list(zip(words[3::2], words[4::2], strict=True))
    assert ("--set", "version=2") in options
    assert ("--limit", "5") in options
    sets = [value for name, value in options if name == "--set"]
    raised = with_budget(sets, [value for name, value in options if name == "--budget"])
    (cap,) = load_pipeline(pipeline.file, sets=raised).caps
    assert cap.limit == 20


def test_what_is_to_pay_is_expected_to_be_like_what_was_paid() -> None:
    price = Price(source="declared", input=1.0, output=10.0, cached=0.1, reasoning=5.0, request=0.001)
    seen = [
        {"prompt_tokens": 100, "completion_tokens": 50, "cached_tokens": 80, "reasoning_tokens": 30},
        {"prompt_tokens": 300, "completion_tokens": 150, "cached_tokens": 20, "reasoning_tokens": 70},
    ]
    due = Due.of(AtMost(requests=4, prompt_tokens=4_000, completion_tokens=8_000), price, seen)
    assert (due.tokens_at_most, due.tokens_expected) == (12_000, 1_200)
    dollars = 600e-6 * 1.0 + 200e-6 * 0.1 + 200e-6 * 10.0 + 200e-6 * 5.0 + 4 * 0.001
    assert due.cost_expected == pytest.approx(dollars)
    assert due.cost_at_most == pytest.approx(4_000e-6 * 1.0 + 8_000e-6 * 10.0 + 4 * 0.001)
    assert Due.of(AtMost(requests=4), price).cost_expected is None


def test_gpu_hours_to_pay_are_estimated_from_earlier_requests_or_unknown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ModelSpec, "gpus_held", property(lambda self: 2))
    loaded = pipeline(tmp_path, "use: fake, price: {gpu_hour: 3}", "budget.gpu_hours=10", "budget.usd=50")
    dues, damage = [{"teacher": Due(requests=30)}], list[Damage]()
    caps, (gpus,) = planned_caps(loaded, tmp_path, dues, damage.append, whole=True)
    assert str(gpus) == "teacher: the GPU-hours to pay are unknown, as no earlier run has counted them"
    unknown = {cap.what: str(cap).endswith("and what is still to pay is unknown") for cap in caps}
    assert unknown == {"gpu_hours": True, "usd": True, "tokens": False}

    book = Ledger(tmp_path, loaded.ledger_name, Writer("w", "earlier", lambda writer: True))
    number = book.reserve("teacher", Amount(requests=15))
    assert isinstance(number, int)
    book.settle(number, Amount(requests=15))
    book.charge("teacher", Amount(gpu_hours=2.0, usd=6.0))
    book.close()
    caps, (gpus,) = planned_caps(loaded, tmp_path, dues, damage.append, whole=True)
    assert str(gpus) == "teacher: about 4.0000 GPU-hours (12.0000 $) are to pay, estimated from 15 earlier requests"
    found = {cap.what: (cap.spent, cap.expected, cap.at_most) for cap in caps}
    assert found["gpu_hours"] == (2.0, 4.0, None)
    assert found["usd"] == (6.0, None, None)
    assert damage == []


class Batches:
    """Stands in for batches at a provider."""

    def __init__(self) -> None:
        self.held: set[str] = set()
        self.fetched = 0
        self.results: Callable[[], None] = lambda: None

    def holds(self, model: str, key: str) -> bool:
        return key in self.held

    async def fetch(self) -> bool:
        if not self.held:
            return False
        self.fetched += 1
        self.held.clear()
        self.results()
        return True


async def test_what_is_in_a_batch_needs_no_reservation_and_keeps_the_one_it_has(tmp_path: Path) -> None:
    loaded = pipeline(tmp_path, "use: fake, price: {input: 10, output: 20}", "budget={requests: 1}")
    batches, made = Batches(), []
    for run in ("killed", "stopped", "next"):
        claims = Claims(tmp_path / "claims")
        one = Spending(loaded, tmp_path, run, lambda claims=claims: claims, lambda: False, batches)  # type: ignore[misc]
        made.append((one, claims))
        if run == "next":
            async with one.request("teacher", REQUEST, NOWHERE) as paid:
                paid.settle(DONE.model_copy(update={"batched": True}))
        else:
            with suppress(Interrupted):
                async with one.request("teacher", REQUEST, NOWHERE):
                    batches.held = {REQUEST.key}
                    raise Interrupted
            assert total(one).requests == 1, "the provider bills it, whoever fetches it"
            claims.close()
    assert (total(one).requests, total(one).completion_tokens) == (1, DONE.completion_tokens)
    for each, _ in made:
        await each.close()
    made[-1][1].close()


async def test_a_cap_ends_a_run_when_the_results_of_its_batches_are_stored(make: Make) -> None:
    spent, batches = make("budget.requests=2"), Batches()
    spent._batches = batches
    spent.ledger.charge("teacher", Amount(requests=2))
    batches.held, batches.results = {"k"}, lambda: spent.ledger.charge("teacher", Amount(requests=-1)) and None
    async with spent.request("teacher", REQUEST, NOWHERE) as paid:  # what came took less than was reserved
        paid.settle(DONE)
    with pytest.raises(BudgetReached):
        async with spent.request("teacher", REQUEST, NOWHERE):
            pass
    assert batches.fetched == 1
