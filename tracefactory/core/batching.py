"""`batch:` of a model: completions at a discount, which the provider answers within a window instead of at once."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from tracefactory.core.environment import EnvStr
from tracefactory.core.rows import Frozen

AT_ONCE = 1_000_000
"""Requests of a batch model that may wait at the same time, so that all requests of a stage are in its batches."""
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_DURATION = r"^\d+(\.\d+)?[smhd]$"

BatchProtocol = Literal["openai", "anthropic", "gemini", "fireworks"]


class BatchSettings(Frozen):
    """How the batches of a model are made. Nothing of it changes a completion, so it is in no key."""

    window: str = Field(
        default="24h", pattern=_DURATION, description="The provider's window for a batch, such as 24h (30s, 90m, 2d)."
    )
    max_wait: str | None = Field(
        default=None,
        pattern=_DURATION,
        description="After this time a batch is cancelled and its rest is sent online, at the full price; without it, "
        "what a batch did not answer is owed, and the next run asks again.",
    )
    min_requests: int = Field(default=1, ge=1, description="Fewer requests than this are sent online, without a batch.")
    protocol: BatchProtocol | None = Field(
        default=None,
        description="The protocol of the batches: by default that of the model; gemini or fireworks for a "
        "`use: openai` model that is served there, whose batches have a protocol of their own.",
    )
    account: EnvStr = Field(
        default=EnvStr(""),
        description="The id of the account that pays for batches of protocol fireworks, which is part of their "
        "addresses; env:NAME works.",
    )

    @model_validator(mode="after")
    def _names_account(self) -> Self:
        if self.protocol == "fireworks" and not self.account:
            raise ValueError("batches of protocol fireworks need the `account:` that pays for them")
        if self.protocol != "fireworks" and self.account:
            raise ValueError("`account:` is of batches of `protocol: fireworks` alone")
        return self

    @property
    def max_wait_s(self) -> float | None:
        """`max_wait` in seconds."""
        return None if self.max_wait is None else seconds_of(self.max_wait)


def seconds_of(duration: str) -> float:
    """Return the seconds of a duration such as `24h`."""
    return float(duration[:-1]) * _UNITS[duration[-1]]
