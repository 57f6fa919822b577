"""The batch protocol of OpenAI, and of those who copied it (Together, Novita): a file up, a batch, two files down.

Differences of the copies, by their documentation: Together takes files at /files/upload for the purpose `batch-api`, up
to 100 MB, wraps a new batch into `job`, lists batches without metadata, and writes states in capitals; Novita has one
window, 48h. A batch is therefore found by the id of its input file, which is in the ledger before it is created.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import orjson

from tracefactory.serving.batches.ledger import Entry
from tracefactory.serving.batches.protocol import BatchApi, BatchState, Limits, Line, Refusal
from tracefactory.serving.completions import UNREADABLE
from tracefactory.serving.failures import AttemptFailed, kind_of_status

TAG = "tracefactory"
"""The name of our tag in a batch's metadata."""
_PAGE = 100
_ENDED = {"completed": "completed", "expired": "expired", "cancelled": "cancelled", "canceled": "cancelled"}
_ENDED |= {"failed": "failed"}
_EXPIRED = {"batch_expired": "batch_expired", "batch_cancelled": "batch_cancelled"}


class _Dialect(NamedTuple):
    upload: str
    purpose: str
    bytes: int


_OPENAI = _Dialect("/files", "batch", 200_000_000)
_DIALECTS = {"together": _Dialect("/files/upload", "batch-api", 100_000_000)}  # by a part of the host's name


class OpenAIBatches(BatchApi):
    """Batches of up to 50,000 chat requests or 200 MB."""

    name = "openai"
    limits = Limits(50_000, _OPENAI.bytes)

    @property
    def most(self) -> Limits:
        """The limits at this provider."""
        return Limits(self.limits.requests, min(self.limits.bytes, self._dialect.bytes))

    @property
    def _dialect(self) -> _Dialect:
        return next((one for name, one in _DIALECTS.items() if name in self.http.host), _OPENAI)

    def request_line(self, key: str, body: Mapping[str, Any]) -> bytes:
        return orjson.dumps({"custom_id": key, "method": "POST", "url": "/v1/chat/completions", "body": body})

    async def upload(self, file: Path, tag: str) -> str:
        name = f"{TAG}-{tag}.jsonl"
        with file.open("rb") as content:
            form = aiohttp.FormData({"purpose": self._dialect.purpose, "file_name": name})
            form.add_field("file", content, filename=name, content_type="application/jsonl")
            answer = await self.http.json("POST", self._dialect.upload, data=form)
        return _id(answer)

    async def create(self, file: Path, file_id: str, tag: str) -> BatchState:
        body = {
            "input_file_id": file_id,
            "endpoint": "/v1/chat/completions",
            "completion_window": self.window,
            "metadata": {TAG: tag},
        }
        return _state(await self.http.json("POST", "/batches", json=body))

    async def find(self, entry: Entry) -> list[str]:
        found: list[tuple[float, str]] = []
        after: dict[str, str] = {}
        while True:
            page = await self.http.json("GET", "/batches", params={"limit": str(_PAGE), **after})
            listed = page if isinstance(page, list) else page.get("data") or []
            for one in listed:
                tagged = (one.get("metadata") or {}).get(TAG) == entry.id
                if tagged or (entry.file and one.get("input_file_id") == entry.file):
                    found.append((_created(one), _id(one)))
            if isinstance(page, list) or not page.get("has_more") or not listed:
                return [batch for _, batch in sorted(found)]
            after = {"after": _id(listed[-1])}

    async def state(self, batch: str) -> BatchState:
        return _state(await self.http.json("GET", f"/batches/{batch}"))

    async def cancel(self, batch: str) -> None:
        await self.gone_is_fine("POST", f"/batches/{batch}/cancel")

    async def delete(self, entry: Entry, results: tuple[str, ...]) -> None:
        for file in (entry.file, *results):
            if file:
                await self.gone_is_fine("DELETE", f"/files/{file}")

    def address(self, results: str) -> str:
        return f"/files/{results}/content"

    def line(self, raw: Any) -> Line:
        key, response, error = raw["custom_id"], raw.get("response") or {}, raw.get("error") or {}
        status = response.get("status_code") or 0
        if status == 200:
            return Line(key, response["body"])
        if code := _EXPIRED.get(str(error.get("code") or "")):
            return Line(key, failure=AttemptFailed(code, str(error.get("message") or "")))
        body = response.get("body") or {}
        detail = error or (body.get("error", body) if isinstance(body, dict) else {})
        detail = detail if isinstance(detail, dict) else {"message": str(detail)}
        kind = kind_of_status(status or 500, detail)
        return Line(key, failure=AttemptFailed(kind, f"HTTP {status}: {detail.get('message') or ''}"))


def _id(answer: Any) -> str:
    if isinstance(answer, dict) and isinstance(answer.get("id"), str) and answer["id"]:
        return str(answer["id"])
    raise AttemptFailed("bad_response", "the response has no id")


def _created(batch: Mapping[str, Any]) -> float:
    """Return when a batch was made: copies write a date."""
    created = batch.get("created_at")
    if isinstance(created, int | float):
        return float(created)
    try:
        return datetime.fromisoformat(str(created)).timestamp()
    except ValueError:
        return 0.0


def _state(answer: Any) -> BatchState:
    """Return what a batch object says; of the copies, some have no counts, no usage or no errors."""
    try:
        one = answer.get("job") or answer
        counts, usage = one.get("request_counts") or {}, one.get("usage") or {}
        outcome, ends_at = _ENDED.get(str(one["status"]).lower(), ""), one.get("expires_at")
        return BatchState(
            id=_id(one),
            outcome=outcome,
            total=counts.get("total"),
            succeeded=counts.get("completed"),
            failed=counts.get("failed") if outcome == "completed" else None,
            usage=(usage["input_tokens"], usage["output_tokens"]) if "input_tokens" in usage else None,
            # Either may be missing, null or "", whatever the state is.
            results=tuple(file for name in ("output_file_id", "error_file_id") if (file := one.get(name))),
            ends_at=float(ends_at) if isinstance(ends_at, int | float) else None,
            refusals=tuple(_refusals(one)) if outcome == "failed" else (),
        )
    except UNREADABLE as error:
        unexpected = f"the batch is described in an unexpected form ({type(error).__name__})"
        raise AttemptFailed("bad_response", unexpected) from error


def _refusals(batch: Mapping[str, Any]) -> Iterator[Refusal]:
    """Yield why a batch failed: OpenAI lists errors, Novita has one sentence in `errors`, Together one in `error`."""
    told = batch.get("errors") or batch.get("error") or {}
    for error in (told.get("data") or ()) if isinstance(told, dict) else (told,):
        if isinstance(error, dict):
            yield Refusal(str(error.get("code") or ""), str(error.get("message") or ""), error.get("line"))
        else:
            yield Refusal("", str(error))
