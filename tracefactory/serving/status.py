"""The state of models and their servers during a run, for its display."""

from __future__ import annotations

from typing import NamedTuple


class EndpointStatus(NamedTuple):
    """The state of one server, as one process sees it; counts are since the start of the process.

    Attributes:
        host: its host and port.
        in_flight: requests sent and not ended.
        limit: the most requests that are sent at once at the moment.
        rate: the most requests per second at the moment, None without a limit.
        answered: requests with an answer.
        refused: requests refused because of their rate (429).
        failed: other failures.
        paused_s: seconds until the next request may be sent.
        reason: the last failure since the last answer.
    """

    host: str
    in_flight: int
    limit: int
    rate: float | None
    answered: int
    refused: int
    failed: int
    paused_s: float
    reason: str

    def plus(self, other: EndpointStatus) -> EndpointStatus:
        """Return the state of the server as this and another process see it together."""
        rates = [one.rate for one in (self, other) if one.rate is not None]
        return EndpointStatus(
            host=self.host,
            in_flight=self.in_flight + other.in_flight,
            limit=self.limit + other.limit,
            rate=sum(rates) if len(rates) == 2 else None,
            answered=self.answered + other.answered,
            refused=self.refused + other.refused,
            failed=self.failed + other.failed,
            paused_s=min(self.paused_s, other.paused_s),
            reason=self.reason or other.reason,
        )


class ModelStatus(NamedTuple):
    """The state of a model: a sentence for the user, empty when there is nothing to say, and its servers."""

    notice: str = ""
    endpoints: tuple[EndpointStatus, ...] = ()
