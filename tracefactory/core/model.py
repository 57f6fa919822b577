"""What a teacher is to the factory: a declared `ModelSpec`, an `Endpoint` that serves it, requests and completions.

Every kind of model is reached over the OpenAI protocol; a kind differs only in what must be started before it answers
and in what decides its completions (`ModelSpec.identity`).
"""

from __future__ import annotations

import os
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self

from pydantic import Field, GetCoreSchemaHandler, JsonValue, SecretStr, field_validator
from pydantic_core import core_schema

from tracefactory.core.checkpoint import Checkpoint
from tracefactory.core.errors import Mistake, UserError
from tracefactory.core.keys import messages_digest, model_digest, request_key, request_key_v1
from tracefactory.core.registry import Registry, registry
from tracefactory.core.rows import Frozen

_ENV = re.compile(r"env:([A-Za-z_][A-Za-z0-9_]*)")
# The client owns these fields of a request; `n` and `stream` would change how many answers come back and how.
_OWNED = frozenset({"messages", "model", "n", "stream"})


class EnvStr(str):
    """A string, or "env:NAME": then the value is read from the environment when it is needed and kept nowhere."""

    __slots__ = ()

    @property
    def env_name(self) -> str | None:
        """The NAME of "env:NAME", or None for a plain string."""
        found = _ENV.fullmatch(self)
        return found[1] if found else None

    def resolve(self, environ: Mapping[str, str]) -> str:
        """Return the value.

        Raises:
            UserError: when the environment variable is unset or empty.
        """
        name = self.env_name
        if name is None:
            return str(self)
        value = environ.get(name, "")
        if not value:
            raise UserError(f"the environment variable {name} is not set")
        return value

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        return core_schema.no_info_after_validator_function(
            cls._checked,
            core_schema.str_schema(),
            serialization=core_schema.plain_serializer_function_ser_schema(str, return_schema=core_schema.str_schema()),
        )

    @classmethod
    def _checked(cls, text: str) -> EnvStr:
        if text.startswith("env:") and not _ENV.fullmatch(text):
            raise ValueError("after env: comes the name of an environment variable (letters, digits, underscores)")
        return cls(text)


@dataclass(frozen=True)
class Environment:
    """The surroundings a spec is read in: the folder relative paths start from, and the environment.

    In a run also where servers of our own are placed (a `serving.vllm.replica.Placement`), and the folder that tells of
    servers kept for several runs.
    """

    root: Path = field(default_factory=Path.cwd)
    environ: Mapping[str, str] = field(default_factory=lambda: os.environ, repr=False)
    placement: Any = None
    servers: Path | None = None


class ModelSpec(Frozen, ABC):
    """A model as a pipeline declares it."""

    use: str = Field(description="The kind of model.")
    model: str = Field(description="The model, by the name that its server knows it under.")
    revision: str = Field(default="", description="Its revision: part of what decides completions, and on every row.")
    licence: str = Field(default="", description="The licence of what it writes, for the dataset's card.")
    price_in: float = Field(default=0.0, ge=0, description="US dollars per million tokens of prompts.")
    price_out: float = Field(default=0.0, ge=0, description="US dollars per million tokens of completions.")
    concurrency: int = Field(default=16, ge=1, le=1000, description="Requests in flight.")
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
    extra: dict[str, JsonValue] = Field(
        default_factory=dict,
        description="What joins the request body where a request says nothing else; it changes completions.",
    )

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
        """Return what rows and cards say of which weights answered; empty when nobody knows."""
        return self.revision

    @property
    @abstractmethod
    def provider_label(self) -> str:
        """Who serves the model: the same weights behind another provider may answer differently."""

    in_process: ClassVar[bool] = False
    """Whether the weights are loaded into the worker: nothing serves the model over HTTP, and it tells entropies."""
    scores_tokens: ClassVar[bool] = False
    """Whether it tells the log-probability of every token of a given text (see `checkpoint`, `scores_key`)."""
    runs_plugins: ClassVar[bool] = False
    """Whether its servers are vLLM servers that this package starts, with plugins of its own and shared by runs."""

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
    def worker_gpus(self) -> int:
        """How many GPUs each of those workers holds for itself, for a model in the worker's own memory."""
        return 0

    @property
    def echoes_prefill(self) -> bool:
        """Whether the server's answer repeats a prefill; the client then removes it."""
        return False

    def check(self, environment: Environment) -> list[Mistake]:
        """Return what is wrong besides the types of the fields, e.g. missing weights. Offline; reads no secret."""
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

    def body(self, request: ChatRequest) -> dict[str, Any]:
        """Return the JSON body of `request` for this kind of server."""
        return {**self.extra, **request.params, "model": self.model, "messages": list(request.messages)}

    def streams(self, request: ChatRequest) -> bool:
        """Return whether the answer to a request is read as a stream."""
        return bool(self.stream)

    def cost(self, completion: Completion) -> float:
        """Return the price of a completion in US dollars by the declared prices."""
        paid_in, paid_out = completion.prompt_tokens * self.price_in, completion.completion_tokens * self.price_out
        return (paid_in + paid_out) / 1e6


MODELS: Registry[type[ModelSpec]] = registry("model")
"""Every kind of model by the value of `use:`."""


def env_names(spec: Frozen) -> list[str]:
    """Return the names of the environment variables that a model, or the parameters of a stage, read."""
    names: set[str] = set()
    for name in type(spec).model_fields:
        value = getattr(spec, name)
        items = value.values() if isinstance(value, Mapping) else value if isinstance(value, tuple) else (value,)
        for item in items:
            if isinstance(item, EnvStr) and item.env_name:
                names.add(item.env_name)
    return sorted(names)


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


class Completion(Frozen):
    """One answer of a server, with everything it said about it. All text is valid UTF-8.

    `reasoning` is the server's separate reasoning field, None when it sent none; `logprobs` are those of the sampled
    tokens, if asked for (see `models.logprobs.packed`); `created` is Unix time at arrival; `seconds` is the wall time
    of the attempt that succeeded and `attempts` how many were made.
    """

    content: str
    reasoning: str | None = None
    refusal: str | None = None
    finish_reason: str
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    served_model: str = ""
    system_fingerprint: str = ""
    logprobs: str | None = None
    created: float
    seconds: float
    attempts: int = 1


class RequestFailed(Exception):  # noqa: N818  # the field's word for it: a failed request, not a program error
    """A request that got no completion. `kind` is a stable snake_case word; `message` holds no secret."""

    def __init__(self, kind: str, message: str, *, attempts: int, retryable: bool) -> None:
        super().__init__(f"{kind}: {message} (after {attempts} attempt{'s' if attempts != 1 else ''})")
        self.kind, self.message, self.attempts, self.retryable = kind, message, attempts, retryable

    def __reduce__(self) -> tuple[Any, ...]:
        return _failed, (self.kind, self.message, self.attempts, self.retryable)


def _failed(kind: str, message: str, attempts: int, retryable: bool) -> RequestFailed:
    return RequestFailed(kind, message, attempts=attempts, retryable=retryable)


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
    def notice(self) -> str:
        """What a person waiting for answers should know now, such as how far a server's start is; mostly empty."""
        ...


def endpoint_for(spec: ModelSpec, environment: Environment | None = None) -> Endpoint:
    """Return the endpoint of `spec`; see `ModelSpec.endpoint`."""
    return spec.endpoint(environment or Environment())
