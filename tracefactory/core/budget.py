"""Caps on what a pipeline may spend, as a pipeline file and the command line declare them."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Literal

from pydantic import Field, field_validator

from tracefactory.core.rows import Frozen

What = Literal["usd", "tokens", "requests", "gpu_hours"]
"""What is counted over all runs of a pipeline; `wall` is the time of one run and is no such sum."""

WARN_AT = 0.8
"""The share of a cap at which a run warns."""

_SECONDS: Mapping[str, float] = {"d": 86400, "h": 3600, "m": 60, "s": 1}
_WALL = re.compile(r"(\d+(\.\d+)?[dhms])+")
COUNTED: Mapping[What, str] = {
    "usd": "US dollars",
    "tokens": "tokens",
    "requests": "requests",
    "gpu_hours": "GPU-hours",
}
"""What is counted over all runs of a pipeline, with the name of its unit."""


class Budget(Frozen):
    """Caps. All but `wall` count what the runs of one version of a pipeline have spent together; see `store.spend`."""

    usd: float | None = Field(default=None, ge=0, description="US dollars, for tokens and GPU-hours together.")
    tokens: int | None = Field(default=None, ge=0, description="Tokens of prompts and completions.")
    requests: int | None = Field(default=None, ge=0, description="Requests that are sent.")
    gpu_hours: float | None = Field(
        default=None, ge=0, description="Hours of GPUs that servers and workers of ours hold."
    )
    wall: str | None = Field(default=None, description="The time of one run, such as 2h, 90m or 1h30m.")

    @field_validator("wall")
    @classmethod
    def _is_a_time(cls, wall: str | None) -> str | None:
        if wall is not None and not _WALL.fullmatch(wall):
            raise ValueError("write a time with its unit, such as 2h, 90m, 30s or 1h30m")
        return wall

    @property
    def wall_s(self) -> float | None:
        """The seconds of `wall`."""
        if self.wall is None:
            return None
        return sum(float(part[:-1]) * _SECONDS[part[-1]] for part in re.findall(r"[\d.]+[dhms]", self.wall))


@dataclass(frozen=True)
class Cap:
    """One cap: `what` of the model `model`, or of all models where it is empty, is at most `limit`."""

    what: What
    limit: float
    model: str = ""

    def __str__(self) -> str:
        of = f"{self.model}: " if self.model else ""
        return f"{of}{self.amount(self.limit)}"

    def amount(self, number: float) -> str:
        """Return a number of what is capped as text."""
        shown = f"{number:,.4f}" if self.what in ("usd", "gpu_hours") else f"{number:,.0f}"
        return f"{shown} {COUNTED[self.what]}"

    def option(self, number: float) -> str:
        """Return the option of the command line that sets the cap."""
        return f"--budget {self.model + '.' if self.model else ''}{self.what}={number:g}"


ON_LOST_ATTEMPT: ContextVar[Callable[[], Awaitable[None]] | None] = ContextVar("ON_LOST_ATTEMPT", default=None)
"""What pays for an attempt that brought no answer, set while a request is sent; see `attempt_lost`."""


async def attempt_lost() -> None:
    """Count an attempt that brought no answer, though the server may bill it, and reserve the next one.

    Raises:
        BudgetReached: when the next attempt could exceed a cap.
    """
    pay = ON_LOST_ATTEMPT.get()
    if pay is not None:
        await pay()
