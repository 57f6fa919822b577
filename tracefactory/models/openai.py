"""`use: openai`: any endpoint that speaks the OpenAI chat protocol, hosted or one's own."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from tracefactory.core.batching import BatchSettings
from tracefactory.core.checkpoint import Checkpoint, local_path
from tracefactory.core.environment import Environment, EnvStr
from tracefactory.core.model import MODELS, ChatRequest
from tracefactory.models._hosted import HostedSpec
from tracefactory.serving.reasoning_levels import Reasoning, reasoning_body

LONG_TOKENS = 4096
"""`max_tokens` from which on answers are streamed by default."""


@MODELS.register("openai")
class OpenAISpec(HostedSpec):
    """A model behind one or more base URLs that serve it alike."""

    use: Literal["openai"] = Field(default="openai", description="The kind of model.")
    base_url: EnvStr | tuple[EnvStr, ...] = Field(
        description="The address of the server, or several of them, usually ending in /v1; env:NAME works."
    )
    provider: str = Field(
        default="",
        description="Who serves the model: elsewhere the same name may mean other weights or another quantisation.",
    )
    reasoning: Reasoning | None = Field(
        default=None,
        description="How much the model reasons: off, low, medium, high or {tokens: N}, by the parameters of the "
        "`provider`: openai (and those that copy it), openrouter, gemini, deepseek, vllm, sglang, llama.cpp ...",
    )
    prefill: Literal["plain", "vllm", "llama.cpp"] = Field(
        default="plain",
        description="How the server continues a beginning of its own turn: plain takes a last assistant message as it "
        "is, vllm needs flags for it, llama.cpp repeats it in its answer, from which it is removed.",
    )
    tokenizer: EnvStr = Field(
        default=EnvStr(""),
        description="Where tokens are exchanged with a vLLM server (to decode together with another model): the folder "
        "of the served checkpoint, or its Hugging Face id.",
    )
    tokenizer_revision: str = Field(default="", description="The revision of a tokenizer from the Hub.")

    @field_validator("base_url")
    @classmethod
    def _some_url(cls, value: EnvStr | tuple[EnvStr, ...]) -> EnvStr | tuple[EnvStr, ...]:
        if not value:
            raise ValueError("at least one base URL is needed")
        return value

    @model_validator(mode="after")
    def _has_reasoning_parameter(self) -> Self:
        taken = reasoning_body(self.provider, self.reasoning).keys() & self.extra.keys()
        if taken:
            raise ValueError(f"reasoning: sets {', '.join(sorted(taken))}, which extra: sets too")
        return self

    @model_validator(mode="after")
    def _pinned(self) -> Self:
        named = self.tokenizer and self.tokenizer.env_name is None and local_path(self.tokenizer) is None
        if named and not self.tokenizer_revision:
            raise ValueError(f"tokenizer {self.tokenizer!r} needs a tokenizer_revision")
        return self

    names_served_model: ClassVar[bool] = True

    @field_validator("batch")
    @classmethod
    def _speaks_protocol(cls, batch: BatchSettings | None) -> BatchSettings | None:
        if batch is not None and batch.protocol == "anthropic":
            raise ValueError("the batches of anthropic are those of a `use: anthropic` model")
        return batch

    @property
    def provider_label(self) -> str:
        """The declared provider."""
        return self.provider

    @property
    def echoes_prefill(self) -> bool:
        """Whether answers repeat the prefill."""
        return self.prefill == "llama.cpp"

    def identity(self, environment: Environment | None = None) -> dict[str, Any]:
        """Return what decides completions; see `ModelSpec.identity`."""
        found = {**super().identity(environment), "prefill": self.prefill}
        return found | ({} if self.reasoning is None else {"reasoning": reasoning_body(self.provider, self.reasoning)})

    @property
    def expects_reasoning(self) -> bool | None:
        """Whether answers must have reasoning; OpenAI's own models reason without showing it."""
        if self.reasoning is None or self.provider.lower() == "openai":
            return None
        return self.reasoning != "off"

    @property
    def exchanges_tokens(self) -> bool:
        """Whether its tokenizer is named."""
        return bool(self.tokenizer)

    def checkpoint(self, environment: Environment) -> Checkpoint | None:
        """Return the named tokenizer, None where none is named.

        Raises:
            UserError: for an unset environment variable.
        """
        if not self.tokenizer:
            return None
        name = self.tokenizer.resolve(environment.environ)
        path = local_path(name, environment.root)
        return Checkpoint(model=name if path is None else str(path), revision=self.tokenizer_revision or None)

    def token_identity(self, environment: Environment) -> dict[str, Any]:
        """Return the identity with that of the named tokenizer."""
        named = self.checkpoint(environment)
        return self.identity(environment) | ({} if named is None else {"tokens": named.identity()})

    def streams(self, request: ChatRequest) -> bool:
        """Return whether the answer is read as a stream: as declared, or if it may be long."""
        return request.params.get("max_tokens", 0) >= LONG_TOKENS if self.stream is None else self.stream

    def body(self, request: ChatRequest) -> dict[str, Any]:
        """Return the JSON body, with vLLM's flags for a prefill where they are needed."""
        body = {**reasoning_body(self.provider, self.reasoning), **super().body(request)}
        if request.has_prefill and self.prefill == "vllm":
            body |= {"continue_final_message": True, "add_generation_prompt": False}
        return body
