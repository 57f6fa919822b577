"""Anthropic's message batches: requests go up with the batch itself, one file of results comes down.

A batch carries no tag of ours and does not tell its custom ids before it has ended. After a kill, a batch of the same
size that is not older than the intent may be the one; if its results show other requests, the next one is tried.
Counts of every outcome come with a batch and are reconciled; what it bills in tokens is told nowhere but in its lines.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import orjson

from tracefactory.serving.anthropic import chat_answer, headers_of
from tracefactory.serving.batches.ledger import Entry
from tracefactory.serving.batches.protocol import BatchApi, BatchState, Limits, Line, size_of
from tracefactory.serving.completions import UNREADABLE
from tracefactory.serving.failures import AttemptFailed

_BATCHES = "/messages/batches"
_CLOCKS_S = 300.0  # by which the provider's clock may differ from ours
_HEAD, _TAIL = b'{"requests":[', b"]}"
_KINDS = {
    "invalid_request_error": "bad_request",
    "request_too_large": "bad_request",
    "authentication_error": "auth",
    "permission_error": "forbidden",
    "not_found_error": "not_found",
    "billing_error": "quota",
    "rate_limit_error": "rate_limited",
    "overloaded_error": "overloaded",
    "timeout_error": "timeout",
}


class AnthropicBatches(BatchApi):
    """Batches of up to 100,000 requests or 256 MB."""

    name = "anthropic"
    limits = Limits(100_000, 256_000_000)
    finds_by_tag = False

    @classmethod
    def headers(cls, secret: str) -> dict[str, str]:
        return headers_of(secret)

    def request_line(self, key: str, body: Mapping[str, Any]) -> bytes:
        return orjson.dumps({"custom_id": key, "params": body})

    async def create(self, file: Path, file_id: str, tag: str) -> BatchState:
        # The lines and their ends become the elements and their commas; the last end of a line does not.
        size = size_of(file) - 1 + len(_HEAD) + len(_TAIL)
        headers = {"Content-Type": "application/json", "Content-Length": str(size)}
        return _state(await self.http.json("POST", _BATCHES, data=_body(file), headers=headers))

    async def find(self, entry: Entry) -> list[str]:
        found: list[tuple[float, str]] = []
        after: dict[str, str] = {}
        while True:
            page = await self.http.json("GET", _BATCHES, params={"limit": "100", **after})
            listed = page.get("data") or []
            young = [one for one in listed if _time(one["created_at"]) >= entry.made - _CLOCKS_S]
            found += [
                (_time(one["created_at"]), str(one["id"]))
                for one in young
                if sum(one["request_counts"].values()) == entry.requests
            ]
            if not page.get("has_more") or not listed or len(young) < len(listed):
                return [batch for _, batch in sorted(found)]
            after = {"after_id": str(listed[-1]["id"])}

    async def state(self, batch: str) -> BatchState:
        return _state(await self.http.json("GET", f"{_BATCHES}/{batch}"))

    async def cancel(self, batch: str) -> None:
        await self.gone_is_fine("POST", f"{_BATCHES}/{batch}/cancel")

    async def delete(self, entry: Entry, results: tuple[str, ...]) -> None:
        if entry.batch:
            await self.gone_is_fine("DELETE", f"{_BATCHES}/{entry.batch}")

    def address(self, results: str) -> str:
        return results

    def line(self, raw: Any) -> Line:
        key, result = raw["custom_id"], raw["result"]
        match result["type"]:
            case "succeeded":
                return Line(key, chat_answer(result["message"]))
            case "expired":
                return Line(key, failure=AttemptFailed("batch_expired", "the batch expired before it was answered"))
            case "canceled":
                return Line(key, failure=AttemptFailed("batch_cancelled", "the batch was cancelled"))
        error = result["error"].get("error", result["error"])
        kind = _KINDS.get(error.get("type"), "server_error")
        return Line(key, failure=AttemptFailed(kind, str(error.get("message") or error.get("type"))))


async def _body(file: Path) -> AsyncIterator[bytes]:
    """Yield the JSON of a create, from the file of its requests."""
    yield _HEAD
    left = size_of(file) - 1
    with file.open("rb") as lines:
        while left and (chunk := lines.read(min(left, 1 << 20))):
            left -= len(chunk)
            yield chunk.replace(b"\n", b",")  # inside of strings, JSON writes \n
    yield _TAIL


def _time(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def _state(answer: Any) -> BatchState:
    try:
        counts, ended = answer["request_counts"], answer["processing_status"] == "ended"
        expired = "expired" if counts["expired"] else "completed"
        return BatchState(
            id=str(answer["id"]),
            outcome=("cancelled" if counts["canceled"] else expired) if ended else "",
            total=sum(counts.values()),
            succeeded=counts["succeeded"],
            failed=counts["errored"] if ended else None,
            results=(answer["results_url"],) if answer.get("results_url") else (),
            ends_at=_time(answer["expires_at"]),
        )
    except UNREADABLE as error:
        unexpected = f"the batch is described in an unexpected form ({type(error).__name__})"
        raise AttemptFailed("bad_response", unexpected) from error
