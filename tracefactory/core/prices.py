"""What completions cost: declared prices, prices that are looked up, and sums that say what they do not know.

A price is declared in the pipeline (`price:` of a model) or looked up in the package genai-prices (the extra `prices`).
A price that cannot be found is "unknown" and never zero; a model without a bill, such as a local one, has the source
"none". Prices are in no key: the same completion at another price is the same completion.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from typing import Any, Self

from pydantic import Field, model_validator

from tracefactory.core.rows import Frozen

DECLARED, UNKNOWN, NO_BILL = "declared", "unknown", "none"
INSTALL = "pip install 'tracefactory[prices]'"
BILL = "bill/"
"""The prefix of the numbers of a stage that add up completions by model and price; see `billed`."""

_RATES = ("input", "output", "cached", "reasoning", "gpu_hour", "request")
_LISTED_S = 60.0  # a listed price can depend on the time of day
_OWN_PROVIDERS = frozenset({"fake", "llama.cpp", "transformers"})  # of records that name no price


class DeclaredPrice(Frozen):
    """A price as a pipeline declares it: US dollars per million tokens, and per hour of one GPU."""

    input: float | None = Field(default=None, ge=0, description="US dollars per million tokens of prompts.")
    output: float | None = Field(default=None, ge=0, description="US dollars per million tokens of completions.")
    cached: float | None = Field(
        default=None, ge=0, description="The same of prompt tokens that the server had cached; `input` by default."
    )
    reasoning: float | None = Field(
        default=None,
        ge=0,
        description="The same of reasoning tokens, where the server counts them; `output` by default.",
    )
    batch: float = Field(default=0.5, ge=0, le=1, description="The factor on the price of what a batch API answers.")
    gpu_hour: float | None = Field(default=None, ge=0, description="US dollars for an hour of one GPU.")

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if (self.input is None) != (self.output is None):
            missing = "input" if self.input is None else "output"
            raise ValueError(f"{missing} is missing: input and output are declared together (0 where it is free)")
        if self.input is None and (self.cached is not None or self.reasoning is not None):
            raise ValueError("cached and reasoning need input and output")
        if self.input is None and self.gpu_hour is None:
            raise ValueError("it names no price: declare input and output, or gpu_hour")
        return self


class Price(Frozen):
    """The price that is used for a completion; the fields are those of `DeclaredPrice`.

    `source` says where it comes from: "declared", "genai-prices" with its version, "unknown", or "none" (no bill).
    """

    source: str
    input: float | None = None
    output: float | None = None
    cached: float | None = None
    reasoning: float | None = None
    batch: float = 0.5
    gpu_hour: float | None = None
    request: float | None = None
    """US dollars for each request in addition to its tokens, which some lists have."""

    @property
    def is_unknown(self) -> bool:
        """Whether the cost of completions is unknown."""
        return self.source == UNKNOWN

    def cost(
        self,
        prompt: int,
        completion: int,
        *,
        cached: int = 0,
        reasoning: int = 0,
        batched: bool = False,
        requests: int = 1,
    ) -> float | None:
        """Return US dollars, None when they are unknown.

        Args:
            prompt: tokens of the prompt.
            completion: tokens of the completion.
            cached: those of the prompt that the server had cached.
            reasoning: those of the completion that are reasoning.
            batched: whether a batch API answers.
            requests: how many requests took these tokens together.
        """
        if self.is_unknown:
            return None
        if self.input is None or self.output is None:
            return 0.0  # there is no bill for tokens
        cached, reasoning = min(cached, prompt), min(reasoning, completion)
        dollars = (prompt - cached) * self.input + cached * (self.input if self.cached is None else self.cached)
        dollars += (completion - reasoning) * self.output
        dollars += reasoning * (self.output if self.reasoning is None else self.reasoning)
        return (dollars / 1e6 + requests * (self.request or 0.0)) * (self.batch if batched else 1.0)

    def at_most(self, prompt: int, completion: int, requests: int = 1) -> float | None:
        """Return the most that these tokens can cost in US dollars, None when it is unknown."""
        ways = [
            self.cost(prompt, completion, cached=cached, reasoning=reasoning, requests=requests)
            for cached in (0, prompt)
            for reasoning in (0, completion)
        ]
        return None if self.is_unknown else max(one for one in ways if one is not None)

    def stored(self) -> dict[str, Any]:
        """Return what is stored with a completion: the source, and the prices that there are."""
        rates = {name: rate for name in _RATES if (rate := getattr(self, name)) is not None}
        return {"source": self.source, **rates, **({"batch": self.batch} if self.input is not None else {})}

    def label(self) -> str:
        """Return the price for a table: "declared: input 0.5, output 2"."""
        rates = [f"{name} {rate:g}" for name in _RATES if (rate := getattr(self, name)) is not None]
        return f"{self.source}: {', '.join(rates)}" if rates else self.source


def looked_up(model: str, provider: str, url: str, prompt_tokens: int = 0) -> Price:
    """Return the price of a hosted model from genai-prices; unknown when the package or the model is not there.

    A model is looked up at its provider alone, because the same name has another price elsewhere.

    Args:
        model: the name that the provider knows it under.
        provider: an id of genai-prices, such as together; empty if not declared.
        url: the address of the provider.
        prompt_tokens: the tokens of the prompt, which some prices depend on.
    """
    if not has_price_list():
        return Price(source=UNKNOWN)
    found = _listed(model, provider, url, int(time.time() // _LISTED_S))
    if found is None:
        return Price(source=UNKNOWN)
    from genai_prices import __version__

    listed = {
        "input": "input_mtok",
        "output": "output_mtok",
        "cached": "cache_read_mtok",
        "reasoning": "output_reasoning_mtok",
        "request": "requests_kcount",
    }
    rates = {ours: _rate(getattr(found, theirs, None), prompt_tokens) for ours, theirs in listed.items()}
    if rates["input"] is None or rates["output"] is None:
        return Price(source=UNKNOWN)
    rates["request"] = None if rates["request"] is None else rates["request"] / 1000
    return Price(source=f"genai-prices {__version__}", **rates)


@lru_cache(maxsize=256)
def _listed(model: str, provider: str, url: str, period: int) -> Any:
    """Return the listed prices of a model in a period of `_LISTED_S`, None where there are none."""
    from genai_prices import Usage, calc_price

    for where in ({"provider_id": provider}, {"provider_api_url": url}):
        if any(where.values()):
            with suppress(LookupError):
                return calc_price(Usage(), model, **where).model_price  # type: ignore[call-overload]
    return None


def _rate(listed: Any, prompt_tokens: int) -> float | None:
    """Return a listed price as a number; one with tiers by the number of prompt tokens."""
    if listed is None:
        return None
    rate = getattr(listed, "base", listed)
    for tier in getattr(listed, "tiers", ()):
        rate = tier.price if prompt_tokens > tier.start else rate
    return float(rate)


@lru_cache(maxsize=1)
def has_price_list() -> bool:
    """Return whether genai-prices is installed. It is imported only when a price is looked up."""
    return find_spec("genai_prices") is not None


@dataclass(frozen=True)
class Bill:
    """What completions of one model at one price took. `unpriced` counts those that `cost` does not include."""

    model: str
    price: str
    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float = 0.0
    unpriced: int = 0


_SUMMED = ("requests", "prompt_tokens", "completion_tokens", "cost", "unpriced")


def cost_of(record: Mapping[str, Any]) -> float | None:
    """Return the cost of a stored completion in US dollars, None when it is unknown.

    Version 0.2 stored no price and a cost of 0 where none was declared; that is unknown, unless there was no bill.
    """
    cost: float | None = record["cost"]
    if "price" in record or cost:
        return cost
    return 0.0 if _had_no_bill(record) else None


def billed(records: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Return the sums of stored completions by model and price, as numbers of a stage; `bills_of` reads them."""
    found: dict[str, float] = {}
    for record in records:
        completion, cost = record["completion"], cost_of(record)
        values = (1, completion["prompt_tokens"], completion["completion_tokens"], cost or 0.0, cost is None)
        for name, value in zip(_SUMMED, values, strict=True):
            key = f"{BILL}{name}/{_label_of(record)}/{record['request']['model_identity'].get('model', '')}"
            found[key] = found.get(key, 0.0) + value
    return found


def bills_of(numbers: Mapping[str, float]) -> list[Bill]:
    """Return the bills in the numbers of a stage, or of several whose numbers were added up."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for key, value in numbers.items():
        if key.startswith(BILL):
            name, label, model = key.removeprefix(BILL).split("/", 2)
            found.setdefault((model, label), {})[name] = value if name == "cost" else int(value)
    return [Bill(model, label, **sums) for (model, label), sums in sorted(found.items())]


def _label_of(record: Mapping[str, Any]) -> str:
    if (price := record.get("price")) is not None:
        return Price.model_validate(price).label().replace("/", " ")
    if record["cost"]:
        return "declared, stored by version 0.2"
    return NO_BILL if _had_no_bill(record) else UNKNOWN


def _had_no_bill(record: Mapping[str, Any]) -> bool:
    return record["request"]["model_identity"].get("provider") in _OWN_PROVIDERS


def dollars(cost: float | None, unpriced: float = 0, requests: float | None = None) -> str:
    """Return a sum of costs as text: "0.1234", "at least 0.1234" where some are unknown, "unknown" where all are.

    Args:
        cost: the sum of the known costs, None if it is unknown.
        unpriced: how many completions have no price.
        requests: how many completions there are; None if that is not known.
    """
    if cost is None or (unpriced and unpriced == requests and not cost):
        return UNKNOWN
    return f"at least {cost:,.4f}" if unpriced else f"{cost:,.4f}"
