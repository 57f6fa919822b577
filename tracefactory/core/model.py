"""What a teacher is to the factory: a declared `ModelSpec`, an `Endpoint` that serves it, requests and completions.

Every kind of model is reached over the OpenAI protocol; a kind differs only in what must be started before it answers
and in what decides its completions (`ModelSpec.identity`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from functools import cached_property, partial
from pathlib import Path, PurePath
from typing import Any, ClassVar, Literal, Protocol, Self

from pydantic import Field, JsonValue, SecretStr, field_validator

from tracefactory.core.batching import AT_ONCE, BatchSettings
from tracefactory.core.budget import Budget
from tracefactory.core.checkpoint import Checkpoint
from tracefactory.core.completion import Completion as Completion
from tracefactory.core.environment import Environment
from tracefactory.core.errors import Mistake, UserError
from tracefactory.core.keys import messages_digest, model_digest, request_key, request_key_v1
from tracefactory.core.prices import DECLARED, NO_BILL, UNKNOWN, DeclaredPrice, Price
from tracefactory.core.registry import Registry, registry
from tracefactory.core.rows import Frozen
from tracefactory.core.wire import Wire

# The client owns these fields of a request; `n` and `stream` would change how many answers come back and how.
_OWNED = frozenset({"messages", "model", "n", "stream"})

CanaryCheck = Literal[
    "empty", "reasoning", "duplicate", "unclosed", "answer", "siblings", "logprobs", "truncated", "model"
]
"""What is looked at in the first answers of a stage; see `serving.canary`."""


class ModelSpec(Frozen, ABC):
    """A model as a pipeline declares it."""

    use: str = Field(description="The kind of model.")
    model: str = Field(description="The model, by the name that its server knows it under.")
    revision: str = Field(default="", description="Its revision: part of what decides completions, and on every row.")
    licence: str = Field(default="", description="The licence of what it writes, for the dataset's card.")
    price: DeclaredPrice | None = Field(
        default=None,
        description="What it costs; without it, a hosted model is looked up in the package genai-prices (the extra "
        "`prices`).",
    )
    budget: Budget | None = Field(
        default=None, description="Caps on what this pipeline spends on the model; `wall` is of the pipeline alone."
    )
    concurrency: int = Field(default=16, ge=1, description="Requests in flight.")
    timeout_s: float = Field(
        default=1800.0,
        gt=0,
        description="Seconds one attempt may take; long, because a server may bill what the client gave up on.",
    )
    retries: int = Field(
        default=6, ge=0, description="Attempts after the first, of failures that count: a 429 does not."
    )
    stream: bool | None = Field(
        default=None,
        description="Read answers as streams, which shows that a model is still writing; by default those of "
        "`use: openai` with max_tokens of 4,096 or more.",
    )
    stall_s: float = Field(default=300.0, gt=0, description="Seconds without a token after which a stream is dead.")
    max_pause_s: float = Field(
        default=1800.0,
        gt=0,
        description="Seconds that a run waits for servers that refuse or do not answer; then it stops, resumable.",
    )
    skip_checks: tuple[CanaryCheck, ...] = Field(
        default=(),
        description="Checks of the first answers of a stage, the canary, whose faults do not stop the run.",
    )
    extra: dict[str, JsonValue] = Field(
        default_factory=dict,
        description="What joins the request body where a request says nothing else; it changes completions.",
    )

    @field_validator("budget")
    @classmethod
    def _no_wall(cls, budget: Budget | None) -> Budget | None:
        if budget is not None and budget.wall is not None:
            raise ValueError("wall is a cap of the whole pipeline: write it under `budget:` of the pipeline")
        return budget

    @field_validator("extra")
    @classmethod
    def _extra_is_not_ours(cls, extra: dict[str, JsonValue]) -> dict[str, JsonValue]:
        taken = sorted(_OWNED & extra.keys())
        if taken:
            raise ValueError(f"{', '.join(taken)} cannot be set here: the factory sets it per request")
        return extra

    def identity(self, environment: Environment | None = None) -> dict[str, Any]:
        """Return what decides completions, as plain JSON data: never addresses, keys, time-outs, limits or prices.

        Keys of stored completions hang on it: an entry that is added later must be empty at its default.

        Raises:
            UserError: when it cannot be known, e.g. because a weights file is missing.
        """
        return {"model": self.model, "revision": self.revision, "provider": self.provider_label, "extra": self.extra}

    def recorded_revision(self, environment: Environment) -> str:
        """Return what rows and cards say of which weights answered: the revision as declared, or a digest of them.

        It is empty when the weights are unknown.
        """
        return self.revision or (str(self.identity(environment)["model"]) if self.digests_weights else "")

    @property
    @abstractmethod
    def provider_label(self) -> str:
        """Who serves the model: the same weights behind another provider may answer differently."""

    in_process: ClassVar[bool] = False
    """Whether the weights are loaded into the worker: nothing serves the model over HTTP, and it tells entropies."""
    scores_tokens: ClassVar[bool] = False
    """Whether it tells the log-probability of every token of a given text (see `checkpoint`, `scores_key`)."""
    wire: ClassVar[Wire] = Wire()
    """How its servers take requests and answer them."""
    runs_plugins: ClassVar[bool] = False
    """Whether its servers are vLLM servers that this package starts, with its plugins and shared by runs."""
    digests_weights: ClassVar[bool] = False
    """Whether the entry `model` of its identity is a digest of local weights."""
    reads_control_tokens: ClassVar[bool] = False
    """Whether its servers make the real token of a control token that a message spells, as llama.cpp and vLLM do."""
    takes_weights: ClassVar[Literal["", "gguf", "folder"]] = ""
    """The form of weights that its servers load from a path: a GGUF file, a checkpoint's folder, or none."""
    names_served_model: ClassVar[bool] = False
    """Whether its answers name the model that wrote them, by the name it was asked by."""

    @property
    def expects_reasoning(self) -> bool | None:
        """Whether its answers must have reasoning, or must have none; None when both are right."""
        return None

    @property
    def exchanges_tokens(self) -> bool:
        """Whether it takes and gives token ids, as decoding together with another model needs."""
        return self.scores_tokens

    @property
    def longest_prompt(self) -> int | None:
        """The most tokens of a text that is scored; None where the servers decide."""
        return None

    def checkpoint(self, environment: Environment) -> Checkpoint | None:
        """Return whose tokenizer and chat template render text for this model; None when they are not at hand.

        Raises:
            UserError: for an unset environment variable or missing weights.
        """
        return None

    def require_checkpoint(self, environment: Environment) -> Checkpoint:
        """Return `checkpoint`, where a stage cannot do without it.

        Raises:
            UserError: when it is not at hand.
        """
        found = self.checkpoint(environment)
        if found is None:
            raise UserError(f"the `use: {self.use}` model {self.model!r} has no tokenizer at hand")
        return found

    def scores_key(self, environment: Environment) -> str:
        """Return the key under which this model's token scores are stored."""
        raise TypeError(f"a `use: {self.use}` model scores no tokens")

    def token_identity(self, environment: Environment) -> dict[str, Any]:
        """Return what decides the model's tokens: of a server that is not ours, its tokenizer and template too."""
        return self.identity(environment)

    @property
    def workers(self) -> int:
        """How many workers a cluster gives to the stages that ask this model first: one, which counts its slots."""
        return 1

    @property
    def client_processes(self) -> int:
        """How many of those workers there are on Ray, where several may share its requests in flight as clients."""
        return self.workers

    @property
    def worker_gpus(self) -> int:
        """How many GPUs each of those workers holds for itself, for a model in the worker's own memory."""
        return 0

    @property
    def gpus_held(self) -> int:
        """How many GPUs a server or worker of ours holds for it; their hours are counted."""
        return self.worker_gpus

    @property
    def gpus_in_all(self) -> int:
        """How many GPUs all its servers and workers of ours hold together while it is loaded."""
        return self.worker_gpus * self.workers

    @property
    def keeps_gpus(self) -> bool:
        """Whether it stays loaded when no stage works with it, until another model needs its GPUs."""
        return False

    def is_served(self, environment: Environment) -> bool:
        """Tell whether servers that another command keeps answer for it now, so that a run loads nothing."""
        return False

    @property
    def echoes_prefill(self) -> bool:
        """Whether the server's answer repeats a prefill; the client then removes it."""
        return False

    def check(self, environment: Environment) -> list[Mistake]:
        """Return what is wrong that types cannot say, such as missing weights. Offline; reads no secret."""
        return []

    @abstractmethod
    def endpoint(self, environment: Environment) -> Endpoint:
        """Return what serves this model; nothing is started yet.

        Raises:
            UserError: for an unset environment variable or missing weights.
        """

    def secret(self, environment: Environment) -> SecretStr | None:
        """Return the key to send with requests, or None for a server that asks for none."""
        return None

    @property
    def batching(self) -> BatchSettings | None:
        """How its completions are got by a batch API; None where they are not."""
        return None

    @property
    def requests_at_once(self) -> int:
        """How many requests may be in flight: of a model with batches all of a stage, which then wait together."""
        return self.concurrency if self.batching is None else AT_ONCE

    def body(self, request: ChatRequest) -> dict[str, Any]:
        """Return the JSON body of `request` for this kind of server."""
        return {**self.extra, **request.params, "model": self.model, "messages": list(request.messages)}

    def streams(self, request: ChatRequest) -> bool:
        """Return whether the answer to a request is read as a stream."""
        return bool(self.stream)

    sends_bills: ClassVar[bool] = True
    """Whether its tokens are billed, so that a price which is not declared is unknown."""

    def price_used(self, environment: Environment, prompt_tokens: int = 0) -> Price:
        """Return what its completions cost: as declared, or as looked up, or unknown; see `core.prices`.

        Args:
            environment: for the address of a hosted model.
            prompt_tokens: the tokens of the prompt, which some prices depend on.
        """
        if self.price is not None:
            return Price(source=DECLARED, **self.price.model_dump())
        return self.looked_up_price(environment, prompt_tokens) if self.sends_bills else Price(source=NO_BILL)

    def looked_up_price(self, environment: Environment, prompt_tokens: int) -> Price:
        """Return the price where none is declared."""
        return Price(source=UNKNOWN)

    def cost(self, completion: Completion, price: Price) -> float | None:
        """Return the cost of a completion in US dollars; None where the price, or what was used, is unknown."""
        used = (not completion.prompt_tokens and price.input, not completion.reports_usage and price.output)
        if any(used):  # every prompt and every text has tokens: the server does not report its usage
            return None
        return price.cost(
            completion.prompt_tokens,
            completion.completion_tokens,
            cached=completion.cached_tokens,
            reasoning=completion.reasoning_tokens,
            batched=completion.batched,
        )


MODELS: Registry[type[ModelSpec]] = registry("model")
"""Every kind of model by the value of `use:`."""


def public_name(model: str) -> str:
    """Return a model's id as rows and cards name it: of a path on one machine, the last part alone.

    Args:
        model: the id: the name of a model, a repository, a path, or env:NAME.
    """
    return PurePath(model).name if PurePath(model).is_absolute() or model.startswith("~") else model


class ChatRequest(Frozen):
    """One completion to pay for. Two requests with the same model, messages, parameters and sample are the same one.

    `params` are sampling parameters under their OpenAI names (temperature, top_p, max_tokens, stop, seed, logprobs);
    a last message with the role "assistant" is a prefill that the model continues.

    Two fields are in no key: `near` is the id of the problem it is about, so that what is read together is stored
    together; `seed_v1` is the seed that version 1 of the keys gave the same request, where that was another one.
    """

    model_identity: dict[str, Any]
    messages: tuple[dict[str, Any], ...]
    params: dict[str, Any] = Field(default_factory=dict)
    sample_index: int = 0
    near: str = Field(default="", exclude=True)
    seed_v1: int | None = Field(default=None, exclude=True)

    @field_validator("params")
    @classmethod
    def _params_are_not_ours(cls, params: dict[str, Any]) -> dict[str, Any]:
        taken = sorted(_OWNED & params.keys())
        if taken:
            raise ValueError(f"{', '.join(taken)} cannot be a sampling parameter")
        return params

    @cached_property
    def key(self) -> str:
        """The key that the completion is stored under; see `core.keys`."""
        model, messages = model_digest(self.model_identity), messages_digest(self.messages)
        return request_key(model, messages, self.params, self.sample_index)

    @property
    def key_v1(self) -> str:
        """The key that version 1 stored the completion under."""
        params = self.params if self.seed_v1 is None else {**self.params, "seed": self.seed_v1}
        return request_key_v1(self.model_identity, self.messages, params, self.sample_index)

    @property
    def has_prefill(self) -> bool:
        """Whether the last message is the beginning of the model's own turn."""
        return bool(self.messages) and self.messages[-1].get("role") == "assistant"

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """Return a copy; its key is computed anew."""
        copied = super().model_copy(update=update, deep=deep)
        vars(copied).pop("key", None)
        return copied


def prompt_bytes(messages: Iterable[Mapping[str, Any]]) -> int:
    """Return the bytes of a prompt, which bound its tokens: no tokenizer makes more tokens than bytes."""
    return sum(len(str(message.get("content") or "").encode()) for message in messages)


class RequestFailed(Exception):  # noqa: N818  # the field's word for it: a failed request, not a program error
    """A request that got no completion. `kind` is a stable snake_case word; `message` holds no secret."""

    def __init__(self, kind: str, message: str, *, attempts: int, retryable: bool) -> None:
        super().__init__(f"{kind}: {message} (after {attempts} attempt{'s' if attempts != 1 else ''})")
        self.kind, self.message, self.attempts, self.retryable = kind, message, attempts, retryable

    def __reduce__(self) -> tuple[Any, ...]:
        made = partial(RequestFailed, attempts=self.attempts, retryable=self.retryable)
        return made, (self.kind, self.message)


class Endpoint(Protocol):
    """What answers for a model: an address somewhere, or server processes of our own."""

    async def start(self, log_dir: Path) -> list[str]:
        """Return the base URLs (ending in /v1), starting what is not running.

        Concurrent callers wait for the same start, and a call while everything runs costs nothing; a server that died
        is started again.

        Raises:
            RunError: when a server does not come up, or has died too often.
        """
        ...

    async def stop(self) -> None:
        """End what `start` started."""
        ...

    @property
    def gpus(self) -> int:
        """The GPUs that its own servers hold now."""
        ...

    @property
    def notice(self) -> str:
        """What a person waiting for answers should know now, such as how far a server's start is; mostly empty."""
        ...
