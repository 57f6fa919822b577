"""What a plan says of money: what the stages still have to pay each model, and what that means for the caps."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tracefactory.core.budget import Cap
from tracefactory.core.environment import Environment
from tracefactory.core.errors import Mistake
from tracefactory.core.pipeline import Pipeline
from tracefactory.core.prices import INSTALL, Price, has_price_list
from tracefactory.core.rows import Frozen
from tracefactory.core.stage import AtMost
from tracefactory.engine.spending import prices_of
from tracefactory.store.damage import Damage
from tracefactory.store.spend import Ledger


class Due(Frozen):
    """What a stage still has to pay one model. Costs are US dollars, None where the price is unknown.

    `expected` numbers are estimated from stored completions of the stage, None without any.
    """

    requests: int = 0
    tokens_at_most: int = 0
    cost_at_most: float | None = 0.0
    tokens_expected: int | None = None
    cost_expected: float | None = None

    @classmethod
    def of(cls, most: AtMost, price: Price, seen: Sequence[Mapping[str, Any]] = ()) -> Due:
        """Return what requests take.

        Args:
            most: their number and their tokens at most.
            price: the price of the model.
            seen: stored completions of the same stage, which the others will be like.
        """
        due = cls(
            requests=most.requests,
            tokens_at_most=most.prompt_tokens + most.completion_tokens,
            cost_at_most=price.at_most(most.prompt_tokens, most.completion_tokens, most.requests),
        )
        if not seen:
            return due
        share = most.requests / len(seen)
        prompt, answer, cached, reasoning = (
            round(share * sum(one.get(name, 0) for one in seen))
            for name in ("prompt_tokens", "completion_tokens", "cached_tokens", "reasoning_tokens")
        )
        cost = price.cost(prompt, answer, cached=cached, reasoning=reasoning, requests=most.requests)
        return due.model_copy(update={"tokens_expected": prompt + answer, "cost_expected": cost})


class GpuTime(Frozen):
    """The GPU-hours that requests to one model may take, and their cost in US dollars; None where that is unknown.

    They are estimated from `basis` earlier requests of the pipeline to the model.
    """

    model: str
    requests: int
    basis: int
    hours: float | None
    cost: float | None

    def __str__(self) -> str:
        if self.hours is None:
            return f"{self.model}: the GPU-hours to pay are unknown, as no earlier run has counted them"
        cost = "unknown" if self.cost is None else f"{self.cost:,.4f}"
        estimate = f"about {self.hours:,.4f} GPU-hours ({cost} $) are to pay"
        return f"{self.model}: {estimate}, estimated from {self.basis:,} earlier requests"


class PlannedCap(Frozen):
    """One cap of a pipeline: what its runs have spent, and what is still to pay, in units of the cap.

    `expected` and `at_most` are None where a price is unknown, or requests are not known yet; GPU-hours have no bound.
    """

    what: str
    model: str
    limit: float
    spent: float
    expected: float | None
    at_most: float | None

    def __str__(self) -> str:
        cap = Cap(self.what, self.limit, self.model)  # type: ignore[arg-type]  # it was one
        spent = f"cap {cap}: {cap.amount(self.spent)} are spent"
        if self.at_most is None and self.expected is not None:
            return f"{spent}, and about {cap.amount(self.expected)} are to pay"
        if self.at_most is None:
            return f"{spent}, and what is still to pay is unknown"
        expected = "" if self.expected is None else f"about {cap.amount(self.expected)} and "
        over = self.spent + self.at_most - self.limit
        end = f"over the cap by at most {cap.amount(over)}" if over > 0 else "within the cap"
        return f"{spent}, {expected}at most {cap.amount(self.at_most)} are to pay: {end}"


def planned_caps(
    pipeline: Pipeline,
    root: Path,
    dues: Iterable[Mapping[str, Due]],
    met: Callable[[Damage], None],
    *,
    whole: bool,
) -> tuple[tuple[PlannedCap, ...], tuple[GpuTime, ...]]:
    """Return every cap with what counts against it, and the GPU-hours to pay of every model that holds GPUs.

    Args:
        pipeline: the pipeline.
        root: the folder of the project's state.
        dues: what each stage has to pay, by model.
        met: is told of damage of the ledger.
        whole: whether all requests of the pipeline are known.
    """
    ledger, prices = Ledger(root, pipeline.ledger_name, met=met), prices_of(pipeline)
    ledger.close()
    due = [(name, one) for by_model in dues for name, one in by_model.items() if one.requests]
    gpus = {name: _gpu_time(name, due, pipeline, ledger) for name, _ in due if pipeline.models[name].gpus_held}
    caps = []
    for cap in pipeline.caps:
        numbers = [_numbers(one, cap) for name, one in due if cap.model in ("", name)]
        if cap.what in ("usd", "gpu_hours"):
            held = [one for name, one in gpus.items() if cap.model in ("", name)]
            numbers += [(one.cost if cap.what == "usd" else one.hours, None) for one in held]
        caps.append(
            PlannedCap(
                what=cap.what,
                model=cap.model,
                limit=cap.limit,
                spent=ledger.spent(cap, prices),
                expected=total(one[0] for one in numbers) if whole else None,
                at_most=total(one[1] for one in numbers) if whole else None,
            )
        )
    return tuple(caps), tuple(gpus.values())


def _gpu_time(model: str, due: Iterable[tuple[str, Due]], pipeline: Pipeline, ledger: Ledger) -> GpuTime:
    counted = [one for (name, _), one in ledger.totals().items() if name == model and one.gpu_hours > 0]
    requests, basis = sum(one.requests for name, one in due if name == model), sum(one.requests for one in counted)
    hours = requests * sum(one.gpu_hours for one in counted) / basis if basis else None
    price = pipeline.models[model].price
    rate = None if price is None else price.gpu_hour
    cost = None if hours is None or rate is None else hours * rate
    return GpuTime(model=model, requests=requests, basis=basis, hours=hours, cost=cost)


def unpriced(pipeline: Pipeline, names: Iterable[str]) -> list[Mistake]:
    """Return a mistake for every model without a price that a cap in US dollars counts.

    Args:
        pipeline: the pipeline.
        names: the models that the run may ask.
    """
    environment, mistakes = Environment(root=pipeline.project.root), []
    capped = {cap.model for cap in pipeline.caps if cap.what == "usd"}
    for name in sorted(names):
        spec = pipeline.models[name]
        if not capped & {"", name}:
            continue
        if spec.price_used(environment).is_unknown:
            install = "" if has_price_list() else f", or look it up: {INSTALL}"
            hint = f"declare price: {{input: ..., output: ...}} in US dollars per million tokens{install}"
            mistakes.append(Mistake(f"model {name!r} has no price, so the cap in US dollars cannot be kept", hint=hint))
        elif spec.gpus_held and (spec.price is None or spec.price.gpu_hour is None):
            hint = "declare price: {gpu_hour: ...}, 0 where they cost nothing"
            message = f"model {name!r} holds GPUs without a price, so the cap in US dollars cannot be kept"
            mistakes.append(Mistake(message, hint=hint))
    return mistakes


def _numbers(due: Due, cap: Cap) -> tuple[float | None, float | None]:
    """Return what is expected and the most, in units of a cap."""
    if cap.what == "gpu_hours":
        return 0.0, 0.0
    if cap.what == "requests":
        return due.requests, due.requests
    if cap.what == "tokens":
        return due.tokens_expected, due.tokens_at_most
    return due.cost_expected, due.cost_at_most


def total(numbers: Iterable[float | None]) -> float | None:
    """Return the sum; None where one is unknown."""
    known = list(numbers)
    return None if any(one is None for one in known) else sum(one for one in known if one is not None)
