"""`use: anthropic`: models behind Anthropic's messages protocol, online and in batches."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator

from tracefactory.core.batching import BatchSettings
from tracefactory.core.environment import EnvStr
from tracefactory.core.model import MODELS, ChatRequest
from tracefactory.core.wire import Wire
from tracefactory.models._hosted import HostedSpec, KeyName
from tracefactory.serving.anthropic import MESSAGES, messages_body


@MODELS.register("anthropic")
class AnthropicSpec(HostedSpec):
    """A model that is asked by Anthropic's messages protocol.

    Thinking is set in `extra`, e.g. {thinking: {type: enabled, budget_tokens: 8000}}. The protocol has no seed and no
    log-probabilities.
    """

    use: Literal["anthropic"] = Field(default="anthropic", description="The kind of model.")
    base_url: EnvStr = Field(
        default=EnvStr("https://api.anthropic.com/v1"), description="The address, ending in /v1; env:NAME works."
    )
    api_key: KeyName = Field(default=EnvStr("env:ANTHROPIC_API_KEY"), description="The key, as env:NAME.")
    batch: BatchSettings | None = Field(
        default=None, description="Get completions by message batches, at their discount: {window: 24h, max_wait: 30h}."
    )

    provider_label: ClassVar[str] = "anthropic"
    wire: ClassVar[Wire] = MESSAGES

    @field_validator("batch")
    @classmethod
    def _own_protocol(cls, batch: BatchSettings | None) -> BatchSettings | None:
        if batch is not None and batch.protocol not in (None, "anthropic"):
            raise ValueError("a `use: anthropic` model has the batches of anthropic")
        return batch and batch.model_copy(update={"protocol": "anthropic"})

    def streams(self, request: ChatRequest) -> bool:
        """Return False: streams of this protocol are not read."""
        return False

    def body(self, request: ChatRequest) -> dict[str, Any]:
        """Return the body of a messages request."""
        return messages_body(super().body(request))
