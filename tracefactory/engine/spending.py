"""What a worker spends, within the caps of its pipeline: requests are reserved before they are sent, GPUs by the time.

The sums are in the ledger of the pipeline (`store.spend`), which all workers and runs share.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from tracefactory.core.budget import ON_LOST_ATTEMPT
from tracefactory.core.environment import Environment
from tracefactory.core.errors import BudgetReached, Interrupted, RunError
from tracefactory.core.model import ChatRequest, Completion, RequestFailed, prompt_bytes
from tracefactory.core.pipeline import Pipeline
from tracefactory.core.prices import Price
from tracefactory.store.claims import Claims
from tracefactory.store.spend import Amount, Ledger, Refusal, Writer

if TYPE_CHECKING:
    from tracefactory.serving.client import ChatClient

GPU_PERIOD_S = 10.0
"""GPU-hours are charged for so many seconds in advance; what is left of them at the end is given back."""

_POLL_S = 0.1
_TEMPLATE_TOKENS = 64  # a chat template adds tokens to a prompt: these, and some for each message
_TOKENS_PER_MESSAGE = 16
_LONGEST = 131_072  # tokens of an answer that nothing limits


class Submitted(Protocol):
    """Batches at providers, see `engine.batching.Batches`."""

    def holds(self, model: str, key: str) -> bool:
        """Return whether a request is in a batch that was submitted, or was about to be."""
        ...

    async def fetch(self) -> bool:
        """Wait for all batches and see them stored; return whether there were any."""
        ...


class Spending:
    """What one worker spends.

    Args:
        pipeline: the pipeline.
        root: the state folder.
        run: the run.
        claims: tells which processes live.
        is_draining: whether nothing more is sent.
        batches: the batches of the worker, whose requests are paid for already.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        root: Path,
        run: str,
        claims: Callable[[], Claims],
        is_draining: Callable[[], bool],
        batches: Submitted | None = None,
    ) -> None:
        self.pipeline, self.root, self.run, self._batches = pipeline, root, run, batches
        self.caps = pipeline.caps
        self._claims, self._is_draining = claims, is_draining
        self._turns: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._meter: asyncio.Task[None] | None = None

    @cached_property
    def ledger(self) -> Ledger:
        """The ledger; made by the first request that is sent."""
        claims = self._claims()
        writer = Writer(claims.writer, self.run, claims.is_alive)
        met = None if self.caps else (lambda damage: None)  # without caps, the driver of the run warns of damage
        return Ledger(self.root, self.pipeline.ledger_name, writer, met)

    @cached_property
    def prices(self) -> Mapping[str, Price]:
        """The prices by model as far as they are known before a request."""
        return prices_of(self.pipeline)

    @asynccontextmanager
    async def request(self, model: str, request: ChatRequest, environment: Environment) -> AsyncIterator[PaidRequest]:
        """Reserve the worst case of a request while it is sent.

        Raises:
            BudgetReached: when it could exceed a cap.
            Interrupted: when the run is being drained.
        """
        paid = PaidRequest(self, model, request, environment)
        await paid.reserve()
        before = ON_LOST_ATTEMPT.set(paid.lost)
        try:
            yield paid
        except (RequestFailed, RunError, Interrupted):
            if not self._is_submitted(model, request.key):
                paid.release()
            raise  # after any other exception it is not known whether the server bills it: it stays reserved
        finally:
            ON_LOST_ATTEMPT.reset(before)

    async def answer(self, model: str, client: ChatClient, environment: Environment, request: ChatRequest) -> Any:
        """Return the JSON of the answer to a request whose completion is not stored; what it costs is counted."""
        async with self.request(model, request, environment) as paid:
            completion, answer = await client.answer(request)
            paid.settle(completion)
        return answer

    def spent(
        self, model: str, request: ChatRequest, completion: Completion, environment: Environment
    ) -> tuple[float | None, Price]:
        """Count a completion that was paid for without a reservation; return its cost and the price that was used."""
        price = self.pipeline.models[model].price_used(environment, completion.prompt_tokens)
        cost = self.pipeline.models[model].cost(completion, price)
        amount = Amount.of(completion.prompt_tokens, completion.completion_tokens, cost)
        if not completion.reports_usage:
            amount = PaidRequest(self, model, request, environment).worst
        self.ledger.charge(model, amount, (), self.prices, replaces=request.key)
        return cost, price

    async def reserve(self, model: str, worst: Amount, key: str) -> int:
        """Reserve an amount, as soon as requests in flight leave room for it; return the number of the reservation.

        A request in a batch that was submitted has to be paid for whatever the caps say, and is not submitted again. At
        a cap, all such batches are waited for before the run ends: what they took is less than what was reserved.
        """
        if self._is_submitted(model, key):
            return self.ledger.renew(model, worst, key)
        async with self._turns[model]:  # those that wait look into the ledger one after another
            while True:
                if self._is_draining():
                    raise Interrupted
                found = self.ledger.reserve(model, worst, self.caps, self.prices, key)
                if not isinstance(found, Refusal):
                    return found
                if found.final and (self._batches is None or not await self._batches.fetch()):
                    raise BudgetReached(_reached(found))
                if not found.final:
                    await asyncio.sleep(_POLL_S)

    def _is_submitted(self, model: str, key: str) -> bool:
        return self._batches is not None and self._batches.holds(model, key)

    def meter(self, gpus: Callable[[], Mapping[str, int]], stop: Callable[[BudgetReached], None]) -> None:
        """Count the hours of GPUs from now on.

        Args:
            gpus: returns the GPUs that are held now, by model.
            stop: stops the worker when a cap is reached.
        """
        if self._meter is None:
            self._meter = asyncio.create_task(self._count_gpus(gpus, stop))

    async def close(self) -> None:
        """Stop counting."""
        if self._meter is not None:
            self._meter.cancel()
            await asyncio.gather(self._meter, return_exceptions=True)
        if "ledger" in vars(self):
            self.ledger.close()

    async def _count_gpus(self, gpus: Callable[[], Mapping[str, int]], stop: Callable[[BudgetReached], None]) -> None:
        loop = asyncio.get_running_loop()
        while True:
            held = {model: count for model, count in gpus().items() if count}
            began = loop.time()
            for model, count in held.items():
                asked = self._gpu_time(model, count * GPU_PERIOD_S)
                if reached := self.ledger.charge(model, asked, self.caps, self.prices):
                    stop(BudgetReached(_reached(reached)))
            try:
                await asyncio.sleep(GPU_PERIOD_S if held else 1.0)
            finally:
                left_s = GPU_PERIOD_S - (loop.time() - began)
                if held and left_s > 0:
                    for model, count in held.items():
                        self.ledger.charge(model, self._gpu_time(model, -count * left_s))

    def _gpu_time(self, model: str, gpu_seconds: float) -> Amount:
        hours, declared = gpu_seconds / 3600, self.pipeline.models[model].price
        rate = None if declared is None else declared.gpu_hour
        return Amount(usd=hours * (rate or 0.0), gpu_hours=hours)


class PaidRequest:
    """A request that is reserved while it is sent, and settled when it is answered."""

    def __init__(self, spending: Spending, model: str, request: ChatRequest, environment: Environment) -> None:
        self.spending, self.model, self.environment = spending, model, environment
        self.spec, self.key = spending.pipeline.models[model], request.key
        self.worst = _worst_case(self.spec.extra | request.params, request, self.price_for)
        self._number: int | None = None

    def price_for(self, prompt_tokens: int) -> Price:
        """Return the price for a prompt of this length."""
        return self.spec.price_used(self.environment, prompt_tokens)

    async def reserve(self) -> None:
        """Reserve the worst case, see `Spending.reserve`."""
        self._number = await self.spending.reserve(self.model, self.worst, self.key)

    async def lost(self) -> None:
        """Spend the worst case on an attempt without an answer, which the server may bill, and reserve the next one."""
        self._settle(self.worst)
        await self.reserve()

    def release(self) -> None:
        """Spend nothing: there is no answer."""
        self._settle(Amount())

    def cost(self, completion: Completion) -> tuple[float | None, Price]:
        """Return what the completion costs, None if unknown, and the price that was used."""
        price = self.price_for(completion.prompt_tokens)
        return self.spec.cost(completion, price), price

    def settle(self, completion: Completion) -> None:
        """Spend what the completion took."""
        cost, _ = self.cost(completion)
        tokens = (completion.prompt_tokens, completion.completion_tokens)
        # Where the server does not report its tokens, a cap counts the worst case.
        amount = Amount.of(*tokens, cost) if completion.reports_usage else self.worst
        # A batch is billed once, also when a process that died had submitted it.
        self._settle(amount, replaces=self.key if completion.batched else "")

    def _settle(self, amount: Amount, replaces: str = "") -> None:
        number, self._number = self._number, None
        if number is not None:
            self.spending.ledger.settle(number, amount, replaces)


def prices_of(pipeline: Pipeline) -> dict[str, Price]:
    """Return the prices of the models that the stages of a pipeline use."""
    environment = Environment(root=pipeline.project.root)
    used = sorted({name for stage in pipeline.stages for name in stage.model_names})
    return {name: pipeline.models[name].price_used(environment) for name in used}


def bytes_at_most(request: ChatRequest) -> int:
    """Return a bound on the size of a request's record in the store."""
    prompt = sum(len(str(message.get("content"))) for message in request.messages)
    per_token = 120 if request.params.get("logprobs") else 12
    return 4096 + 4 * prompt + per_token * int(request.params.get("max_tokens", 4096))


def _worst_case(params: Mapping[str, Any], request: ChatRequest, price_for: Callable[[int], Price]) -> Amount:
    """Return the most that a request can take: every byte a token, and as many tokens as the answer may have."""
    prompt = prompt_bytes(request.messages) + _TEMPLATE_TOKENS + _TOKENS_PER_MESSAGE * len(request.messages)
    limits = (params.get(name) for name in ("max_completion_tokens", "max_tokens"))
    answer = max((int(limit) for limit in limits if limit is not None), default=_LONGEST)
    return Amount.of(prompt, answer, price_for(prompt).at_most(prompt, answer))


def _reached(refused: Refusal) -> str:
    cap = refused.cap
    spent, asked = cap.amount(refused.spent), cap.amount(refused.asked)
    return f"{cap}: {spent} are spent, and the next request can take {asked}"
