"""Google's batches of Gemini models, in file mode alone: large inline results were billed and never seen.

`batchStats` of a batch counts requests, which is reconciled; what it bills in tokens is told nowhere but in its lines.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import orjson

from tracefactory.serving.batches.ledger import Entry
from tracefactory.serving.batches.protocol import BatchApi, BatchState, Limits, Line, Refusal, size_of
from tracefactory.serving.completions import UNREADABLE
from tracefactory.serving.failures import AttemptFailed, kind_of_status
from tracefactory.serving.gemini import chat_answer, generate_body, is_blocked

_OUTCOMES = {
    "SUCCEEDED": "completed",
    "PARTIALLY_SUCCEEDED": "completed",
    "FAILED": "failed",
    "CANCELLED": "cancelled",
    "EXPIRED": "expired",
}
# Codes of google.rpc.Code in the lines of results.
_KINDS = {3: "bad_request", 4: "timeout", 5: "not_found", 7: "forbidden", 8: "rate_limited", 14: "overloaded"}


class GeminiBatches(BatchApi):
    """Batches of one file of up to 2 GB; of so many requests that a file is read in good time."""

    name = "gemini"
    limits = Limits(100_000, 2_000_000_000)

    @classmethod
    def root(cls, base_url: str, account: str) -> str:
        """Return Google's own address, from that of the OpenAI-compatible one, which ends in /openai."""
        return base_url.removesuffix("/openai")

    @classmethod
    def headers(cls, secret: str) -> dict[str, str]:
        return {"x-goog-api-key": secret} if secret else {}

    def request_line(self, key: str, body: Mapping[str, Any]) -> bytes:
        try:
            return orjson.dumps({"key": key, "request": generate_body(body)})
        except ValueError as error:
            raise AttemptFailed("bad_request", str(error)) from error

    async def upload(self, file: Path, tag: str) -> str:
        size = str(size_of(file))
        start = {
            "X-Goog-Upload-Protocol": "resumable",
            "X-Goog-Upload-Command": "start",
            "X-Goog-Upload-Header-Content-Length": size,
            "X-Goog-Upload-Header-Content-Type": "application/jsonl",
        }
        named = {"file": {"display_name": tag}}
        _, told = await self.http.request("POST", self._beside("upload", "/files"), headers=start, json=named)
        if "x-goog-upload-url" not in told:
            raise AttemptFailed("bad_response", "the response has no address to upload to")
        finish = {"X-Goog-Upload-Offset": "0", "X-Goog-Upload-Command": "upload, finalize", "Content-Length": size}
        with file.open("rb") as content:
            answer = await self.http.json("POST", told["x-goog-upload-url"], headers=finish, data=content)
        try:
            return str(answer["file"]["name"])
        except UNREADABLE as error:
            raise AttemptFailed("bad_response", "the response names no file") from error

    async def create(self, file: Path, file_id: str, tag: str) -> BatchState:
        body = {"batch": {"display_name": tag, "input_config": {"file_name": file_id}}}
        return _state(await self.http.json("POST", f"/models/{self.model}:batchGenerateContent", json=body))

    async def find(self, entry: Entry) -> list[str]:
        found: list[tuple[str, str]] = []
        token: dict[str, str] = {}
        while True:
            page = await self.http.json("GET", "/batches", params={"pageSize": "100", **token})
            for one in page.get("operations") or []:
                metadata = one.get("metadata") or one
                if metadata.get("displayName") == entry.id:
                    found.append((str(metadata.get("createTime") or ""), str(one["name"])))
            if not page.get("nextPageToken"):
                return [name for _, name in sorted(found)]
            token = {"pageToken": page["nextPageToken"]}

    async def state(self, batch: str) -> BatchState:
        return _state(await self.http.json("GET", f"/{batch}"))

    async def cancel(self, batch: str) -> None:
        await self.gone_is_fine("POST", f"/{batch}:cancel")

    async def delete(self, entry: Entry, results: tuple[str, ...]) -> None:
        for file in (entry.file, *results):
            if file:
                await self.gone_is_fine("DELETE", f"/{file}")

    def address(self, results: str) -> str:
        return self._beside("download", f"/{results}:download?alt=media")

    def line(self, raw: Any) -> Line:
        key, answer, error = raw["key"], raw.get("response"), raw.get("error")
        if answer and is_blocked(answer):
            blocked = f"the prompt was refused: {answer['promptFeedback']['blockReason']}"
            return Line(key, failure=AttemptFailed("content_filter", blocked))
        if answer:
            return Line(key, chat_answer(answer))
        code = error.get("code") or 0
        kind = kind_of_status(code, {}) if code >= 400 else _KINDS.get(code, "server_error")
        return Line(key, failure=AttemptFailed(kind, str(error.get("message") or code)))

    def _beside(self, service: str, path: str) -> str:
        """Return an address of the services for files, which are beside the API: /upload/v1beta, /download/v1beta."""
        parts = urlsplit(self.http.base_url)
        return f"{parts.scheme}://{parts.netloc}/{service}{parts.path}{path}"


def _state(answer: Any) -> BatchState:
    """Return what an operation says; its metadata describe the batch."""
    try:
        metadata = answer.get("metadata") or answer
        state = str(metadata["state"]).split("STATE_")[-1]
        output = answer.get("response") or metadata.get("output") or {}
        counts, error = metadata.get("batchStats") or {}, answer.get("error") or {}
        total, succeeded = counts.get("requestCount"), counts.get("successfulRequestCount")
        outcome = _OUTCOMES.get(state, "")
        return BatchState(
            id=str(answer["name"]),
            outcome=outcome,
            total=None if total is None else int(total),
            # Numbers that are 0 are left out.
            succeeded=None if total is None or not outcome else int(succeeded or 0),
            failed=int(counts.get("failedRequestCount") or 0) if total is not None and state == "SUCCEEDED" else None,
            results=(output["responsesFile"],) if output.get("responsesFile") else (),
            refusals=(Refusal(str(error.get("code") or ""), str(error.get("message") or "")),)
            if outcome == "failed"
            else (),
        )
    except UNREADABLE as error:
        unexpected = f"the batch is described in an unexpected form ({type(error).__name__})"
        raise AttemptFailed("bad_response", unexpected) from error
