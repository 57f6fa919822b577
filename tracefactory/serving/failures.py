"""Why requests fail, and what follows from it: the table `FAILURES`, and how responses and errors are read.

Only a failure that is the row's own fault ends a row. Everything else stays owed: the next run asks again.
"""

from __future__ import annotations

import email.utils
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from tracefactory.core.model import RequestFailed


@dataclass(frozen=True)
class FailureKind:
    """One kind of failure.

    Attributes:
        name: the reason of the failed row.
        cause: what happened.
        retries: `no`; `once`; `counted`: as often as the model's `retries`; `free`: without counting, while the server
            answers other requests or the pause is shorter than the model's `max_pause_s`.
        owed: whether another run tries again: `always`, `never`, or `unless_others_answered`: a request that is refused
            while the model answers others is the row's own fault.
        stops: the run stops at one such failure, at several in a row without an answer between, or never.
        remedy: what the user can do.
    """

    name: str
    cause: str
    retries: Literal["no", "once", "counted", "free"]
    owed: Literal["always", "never", "unless_others_answered"]
    stops: Literal["at_once", "in_a_row", "never"] = "never"
    remedy: str = ""


_KEY = "check the key, its permissions and its expiry"
_NAMES = "check `model:` and `base_url:`"
_PARAMETERS = "check the parameters of the stage and `extra:` of the model against the provider's documentation"

FAILURES: Mapping[str, FailureKind] = {
    one.name: one
    for one in (
        FailureKind("quota", "402, or insufficient_quota: no credit is left", "no", "always", "at_once", "add credit"),
        FailureKind("rate_limited", "429: too many requests or tokens per minute", "free", "always"),
        FailureKind("overloaded", "503 or 529: the server has no capacity", "free", "always"),
        FailureKind("server_error", "another 5xx, or an aborted answer", "counted", "always"),
        FailureKind("connection", "refused, reset or lost", "counted", "always"),
        FailureKind("timeout", "408, no answer in `timeout_s`, or no token in `stall_s`", "once", "always"),
        FailureKind("bad_response", "no JSON, or JSON of another form", "counted", "always"),
        FailureKind("conflict", "409", "counted", "always"),
        FailureKind("preempted", "a server of ours dropped the request", "counted", "always"),
        FailureKind("auth", "401: the key is refused", "no", "always", "in_a_row", _KEY),
        FailureKind("forbidden", "403: the request is refused", "no", "unless_others_answered", "in_a_row", _KEY),
        FailureKind("not_found", "404: no such model or address", "no", "unless_others_answered", "in_a_row", _NAMES),
        FailureKind(
            "bad_request",
            "400, 413 or 422: it is refused",
            "no",
            "unless_others_answered",
            "in_a_row",
            _PARAMETERS,
        ),
        FailureKind(
            "context_length",
            "prompt and max_tokens are longer than the model's context",
            "no",
            "unless_others_answered",
            "in_a_row",
            "lower max_tokens",
        ),
        FailureKind("content_filter", "the provider's filter refused the prompt", "no", "never"),
        FailureKind("batch_expired", "the window of its batch ended before it was answered", "counted", "always"),
        FailureKind("batch_cancelled", "its batch was cancelled before it was answered", "counted", "always"),
        FailureKind("batch_missing", "its batch ended, and no result has a line for it", "counted", "always"),
        FailureKind("not_sent", "the run was started with --no-requests", "no", "always"),
        FailureKind("unreadable_record", "the stored completion cannot be read", "no", "never"),
        FailureKind("no_common_token", "two models of a pair had no token in common", "no", "never"),
    )
}
"""Every kind of failure by name."""

_ANSWER_LOST = frozenset({"connection", "timeout", "bad_response"})


def failures_in(reasons: Mapping[str, int]) -> dict[str, int]:
    """Return the kinds of failure among the reasons of rows that were not kept, with their counts."""
    return {kind: reasons[kind] for kind in FAILURES if kind in reasons}


IN_A_ROW = 8
"""Refusals in a row, without an answer between them, that stop a run."""

_STATUS = {
    401: "auth",
    402: "quota",
    403: "forbidden",
    404: "not_found",
    408: "timeout",
    409: "conflict",
    429: "rate_limited",
    503: "overloaded",
    529: "overloaded",
}
# Error codes that are more specific than the HTTP status.
_CODES = {
    "insufficient_quota": "quota",
    "billing_hard_limit_reached": "quota",
    "billing_not_active": "quota",
    "content_filter": "content_filter",
    "content_policy_violation": "content_filter",
    "context_length_exceeded": "context_length",  # OpenAI and compatible servers
    "exceed_context_size_error": "context_length",  # llama.cpp
}


class AttemptFailed(Exception):  # noqa: N818  # internal: becomes RequestFailed when no attempt is left
    """One attempt without an answer; `retry_after_s` is the wait that the server asks for.

    `may_be_billed` is whether the server may have answered all the same: it had the request, and its answer was lost.
    """

    def __init__(self, kind: str, message: str, *, retry_after_s: float | None = None, connected: bool = True) -> None:
        super().__init__(kind, message)
        self.may_be_billed = connected and kind in _ANSWER_LOST
        self.kind, self.message, self.retry_after_s = FAILURES[kind], message, retry_after_s

    def failed(self, attempts: int, *, others_answered: bool) -> RequestFailed:
        """Return the failure of the request, owed or final.

        Args:
            attempts: how often it was sent.
            others_answered: whether the model has answered other requests in this run.
        """
        owed = self.kind.owed == "always" or (self.kind.owed == "unless_others_answered" and not others_answered)
        return RequestFailed(self.kind.name, self.message, attempts=attempts, retryable=owed)


def kind_of_status(status: int, detail: Mapping[str, object]) -> str:
    """Return the kind of failure of an HTTP status and the `error` object of its body."""
    for code in (detail.get("code"), detail.get("type")):
        if isinstance(code, str) and code in _CODES:
            return _CODES[code]
    return _STATUS.get(status, "server_error" if status >= 500 else "bad_request")


def from_connection(error: Exception, timeout_s: float) -> AttemptFailed:
    """Return the failure of a connection that was refused or lost, or over which no answer arrived in time."""
    import aiohttp  # takes long, and only a failed connection needs it

    unconnected = (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError, ConnectionRefusedError)
    # The transport reports a connection lost before the headers as a time-out; only the innermost cause differs.
    deepest: BaseException = error
    connected = True
    while deepest.__cause__ is not None:
        deepest = deepest.__cause__
        connected = connected and not isinstance(deepest, unconnected)
    if isinstance(deepest, (aiohttp.ServerTimeoutError, TimeoutError)):
        return AttemptFailed("timeout", f"no response within {timeout_s:g} s", connected=connected)
    return AttemptFailed("connection", f"the connection failed ({type(deepest).__name__})", connected=connected)


def retry_after_seconds(headers: Mapping[str, str]) -> float | None:
    """Return the seconds of the Retry-After header (RFC 9110, 10.2.3: seconds or an HTTP date), None without one."""
    value = headers.get("retry-after")
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
        except ValueError:
            return None
    return max(0.0, seconds) if seconds < float("inf") else None
