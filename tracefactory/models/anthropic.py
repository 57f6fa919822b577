"""`use: anthropic`: models behind Anthropic's messages protocol, online and in batches."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, SecretStr, field_validator

from tracefactory.core.batching import BatchSettings
from tracefactory.core.environment import Environment, EnvStr
from tracefactory.core.errors import UserError
from tracefactory.core.model import MODELS, ChatRequest, Endpoint, ModelSpec
from tracefactory.core.prices import Price, looked_up
from tracefactory.core.wire import Wire
from tracefactory.serving.anthropic import Messages, messages_body
from tracefactory.serving.managed import FixedEndpoint


@MODELS.register("anthropic")
class AnthropicSpec(ModelSpec):
    """A model that is asked by Anthropic's messages protocol.

    Thinking is set in `extra`, e.g. {thinking: {type: enabled, budget_tokens: 8000}}. The protocol has no seed and no
    log-probabilities.
    """

    use: Literal["anthropic"] = Field(default="anthropic", description="The kind of model.")
    base_url: EnvStr = Field(
        default=EnvStr("https://api.anthropic.com/v1"), description="The address, ending in /v1; env:NAME works."
    )
    api_key: EnvStr = Field(default=EnvStr("env:ANTHROPIC_API_KEY"), description="The key, as env:NAME.")
    batch: BatchSettings | None = Field(
        default=None, description="Get completions by message batches, at their discount: {window: 24h, max_wait: 30h}."
    )

    wire: ClassVar[Wire] = Messages()

    @field_validator("api_key")
    @classmethod
    def _key_from_environment(cls, value: EnvStr) -> EnvStr:
        if value and value.env_name is None:
            raise ValueError("a key is never written into a file: set an environment variable and write env:NAME")
        return value

    @field_validator("batch")
    @classmethod
    def _own_protocol(cls, batch: BatchSettings | None) -> BatchSettings | None:
        if batch is not None and batch.protocol not in (None, "anthropic"):
            raise ValueError("a `use: anthropic` model has the batches of anthropic")
        return batch and batch.model_copy(update={"protocol": "anthropic"})

    @property
    def provider_label(self) -> str:
        """Anthropic."""
        return "anthropic"

    @property
    def batching(self) -> BatchSettings | None:
        """How its completions are got by batches, as declared."""
        return self.batch

    def endpoint(self, environment: Environment) -> Endpoint:
        """Return the resolved address."""
        return FixedEndpoint([self.base_url.resolve(environment.environ)])

    def looked_up_price(self, environment: Environment, prompt_tokens: int) -> Price:
        """Return the price at Anthropic."""
        try:
            url = self.base_url.resolve(environment.environ)
        except UserError:
            url = ""  # somebody else's to report
        return looked_up(self.model, self.provider_label, url, prompt_tokens)

    def secret(self, environment: Environment) -> SecretStr | None:
        """Return the key from the environment, None where none is named."""
        return SecretStr(self.api_key.resolve(environment.environ)) if self.api_key else None

    def streams(self, request: ChatRequest) -> bool:
        """Return False: streams of this protocol are not read."""
        return False

    def body(self, request: ChatRequest) -> dict[str, Any]:
        """Return the body of a messages request."""
        return messages_body(super().body(request))
