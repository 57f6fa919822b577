"""Which batch API a model's batches are made with, and where."""

from __future__ import annotations

from tracefactory.core.batching import BatchProtocol
from tracefactory.core.environment import Environment
from tracefactory.core.errors import UserError
from tracefactory.core.model import ModelSpec
from tracefactory.serving.batches.anthropic import AnthropicBatches
from tracefactory.serving.batches.fireworks import FireworksBatches
from tracefactory.serving.batches.gemini import GeminiBatches
from tracefactory.serving.batches.http import Http
from tracefactory.serving.batches.ledger import Place
from tracefactory.serving.batches.openai import OpenAIBatches
from tracefactory.serving.batches.protocol import BatchApi
from tracefactory.serving.managed import FixedEndpoint

_APIS: dict[BatchProtocol, type[BatchApi]] = {
    "openai": OpenAIBatches,
    "anthropic": AnthropicBatches,
    "gemini": GeminiBatches,
    "fireworks": FireworksBatches,
}
_IDLE_S = 120.0  # without data, after which a connection counts as lost


def api_of(spec: ModelSpec, environment: Environment) -> tuple[BatchApi, Place]:
    """Return the batch API of a model, and its place in the ledger.

    Raises:
        UserError: for an unset environment variable, or a model without a fixed address.
    """
    settings, endpoint, key = spec.batching, spec.endpoint(environment), spec.secret(environment)
    if settings is None or not isinstance(endpoint, FixedEndpoint):
        raise UserError(f"the `use: {spec.use}` model {spec.model!r} has no batch API")
    made = _APIS[settings.protocol or "openai"]
    secret, url = (
        "" if key is None else key.get_secret_value(),
        made.root(endpoint.base_urls[0], settings.account.resolve(environment.environ)),
    )
    http = Http(url, made.headers(secret), secret, _IDLE_S)
    return made(http, spec.model, settings.window), Place(protocol=made.name, base_url=url, model=spec.model)
