"""What the kinds of model behind an address have in common: the key, the price list and the batch API."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field, SecretStr, field_validator

from tracefactory.core.addresses import REMEDY, address_fault
from tracefactory.core.batching import BatchSettings
from tracefactory.core.environment import Environment, EnvStr
from tracefactory.core.errors import Mistake, UserError
from tracefactory.core.model import Endpoint, ModelSpec
from tracefactory.core.prices import Price, looked_up
from tracefactory.serving.managed import FixedEndpoint


def _from_environment(key: EnvStr) -> EnvStr:
    if key and key.env_name is None:
        raise ValueError("a key is never written into a file: set an environment variable and write env:NAME")
    return key


KeyName = Annotated[EnvStr, AfterValidator(_from_environment)]
"""The name of an environment variable with a key, as env:NAME; empty for no key."""


def _resolved(url: EnvStr, environment: Environment) -> str:
    """Return an address; messages and logs name it, so one of the environment has no credentials either."""
    address = url.resolve(environment.environ)
    if fault := address_fault(address):
        raise UserError(Mistake(f"base_url: {url.env_name or 'the address'}: {fault}", hint=REMEDY))
    return address


IN_FLIGHT_PER_CLIENT = 500
"""Requests in flight that one process is given on Ray by default."""


class HostedSpec(ModelSpec):
    """A model behind an address, which is not started by this package."""

    base_url: EnvStr | tuple[EnvStr, ...] = Field(description="The address of the server.")
    api_key: KeyName = Field(default=EnvStr(""), description="The key for the server, as env:NAME.")
    batch: BatchSettings | None = Field(
        default=None,
        description="Get completions by the provider's batch API, at its discount: {window: 24h, max_wait: 30h}.",
    )
    clients: int | None = Field(
        default=None,
        ge=1,
        description="Processes that send its requests on Ray, which share `concurrency`; null is one for each "
        f"{IN_FLIGHT_PER_CLIENT} in flight. A model with `batch` has one.",
    )

    @field_validator("base_url")
    @classmethod
    def _address(cls, value: EnvStr | tuple[EnvStr, ...]) -> EnvStr | tuple[EnvStr, ...]:
        for url in (value,) if isinstance(value, EnvStr) else value:
            if url.env_name is None and (fault := address_fault(url)):
                remedy = REMEDY if "would be shown" in fault else "or write env:NAME"
                raise ValueError(f"{fault}; {remedy}")
        return value

    @property
    def batching(self) -> BatchSettings | None:
        """How its completions are got by batches, as declared."""
        return self.batch

    @property
    def client_processes(self) -> int:
        """As declared, or by the requests in flight; never more than there are requests."""
        if self.batching is not None:
            return 1
        wanted = -(-self.concurrency // IN_FLIGHT_PER_CLIENT) if self.clients is None else self.clients
        return min(wanted, self.concurrency)

    def endpoint(self, environment: Environment) -> Endpoint:
        """Return the resolved addresses.

        Raises:
            UserError: for an unset environment variable, or one with a credential in the address.
        """
        urls = (self.base_url,) if isinstance(self.base_url, EnvStr) else self.base_url
        return FixedEndpoint([_resolved(url, environment) for url in urls])

    def looked_up_price(self, environment: Environment, prompt_tokens: int) -> Price:
        """Return the price at the declared provider, or at the provider whose address this is."""
        first = self.base_url if isinstance(self.base_url, EnvStr) else self.base_url[0]
        try:
            url = _resolved(first, environment)
        except UserError:
            url = ""  # an unset variable is reported where the address is used
        return looked_up(self.model, self.provider_label, url, prompt_tokens)

    def secret(self, environment: Environment) -> SecretStr | None:
        """Return the key from the environment, None where none is named."""
        return SecretStr(self.api_key.resolve(environment.environ)) if self.api_key else None
