"""Fireworks' batch inference: a dataset of requests, a job over it, and a dataset of results and errors.

We choose the ids of both datasets and of the job: they are made from the tag of the batch, so that after a kill one GET
tells whether there is a job. The addresses have the account that pays (`batch: {account: ...}`), which no model tells.

By the documentation (docs.fireworks.ai: guides/batch-inference, api-reference/create-batch-inference-job,
get-batch-inference-job, upload-dataset-files, get-dataset-upload-endpoint, get-dataset-download-endpoint), jobs expire
after 24 h, and the rows that were completed by then are billed and in the output dataset. What it does not tell:

- The lines of results: `response` is read as the completion itself or as an object with it in `body`.
- Ending a job early: there is no such call. With `max_wait`, a job that has not begun is deleted; another one goes on.
- Whether the counted tokens have those of failed requests: they are compared for jobs without failures alone.
- What a failed job bills: if it counts an answered request, its results are read, else it is taken to bill nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urlsplit

import aiohttp
import orjson

from tracefactory.serving.batches.http import Http
from tracefactory.serving.batches.ledger import Entry
from tracefactory.serving.batches.protocol import BatchApi, BatchState, Limits, Line, Refusal, size_of
from tracefactory.serving.completions import UNREADABLE
from tracefactory.serving.failures import AttemptFailed, kind_of_status

_OUTCOMES = {"COMPLETED": "completed", "FAILED": "failed", "EXPIRED": "expired", "CANCELLED": "cancelled"}
_NOT_BEGUN = {"CREATING", "VALIDATING", "PENDING"}
_PREFIX = "tracefactory-"
_WINDOW = timedelta(hours=24)
_READY_LOOKS = 60


class FireworksBatches(BatchApi):
    """Batches of a dataset of up to 500 MB; of so many requests that its results are read in good time."""

    name = "fireworks"
    limits = Limits(100_000, 500_000_000)
    most_direct: ClassVar[int] = 150_000_000
    """The largest file that is uploaded in one request; a larger one goes to a signed address."""
    ready_s: ClassVar[float] = 1.0
    """The wait between two looks at a dataset that is being taken in."""

    def __init__(self, http: Http, model: str, window: str) -> None:
        super().__init__(http, model, window)
        self._given_up: set[str] = set()  # jobs that were deleted here before they began

    @classmethod
    def root(cls, base_url: str, account: str) -> str:
        """Return the address of the account, from that of the model, which ends in /inference/v1."""
        parts = urlsplit(base_url)
        return f"{parts.scheme}://{parts.netloc}/v1/accounts/{account}"

    def request_line(self, key: str, body: Mapping[str, Any]) -> bytes:
        """Return the line of a request; the job names the model for all of them."""
        return orjson.dumps({"custom_id": key, "body": {name: body[name] for name in body if name != "model"}})

    async def upload(self, file: Path, tag: str) -> str:
        """Make the input dataset. Repeated after a failure, it goes on with the dataset that is there."""
        dataset = f"{_job(tag)}-in"
        described = {"format": "CHAT", "exampleCount": str(await asyncio.to_thread(_lines, file))}
        try:
            await self.http.json("POST", "/datasets", json={"datasetId": dataset, "dataset": described})
        except AttemptFailed as failed:
            if failed.kind.name != "conflict":
                raise
        if not await self._is_ready(dataset):
            await self._send(file, dataset)
            for _ in range(_READY_LOOKS):
                if await self._is_ready(dataset):
                    break
                await asyncio.sleep(self.ready_s)
            else:
                raise AttemptFailed("timeout", f"dataset {dataset} was uploaded and does not become ready")
        return dataset

    async def create(self, file: Path, file_id: str, tag: str) -> BatchState:
        account = urlsplit(self.http.base_url).path.removeprefix("/v1/")
        body = {
            "displayName": _job(tag),
            "model": self.model,
            "inputDatasetId": f"{account}/datasets/{file_id}",
            "outputDatasetId": f"{account}/datasets/{_output(_job(tag))}",
        }
        params = {"batchInferenceJobId": _job(tag)}
        return _state(await self.http.json("POST", "/batchInferenceJobs", params=params, json=body))

    async def find(self, entry: Entry) -> list[str]:
        try:
            return [(await self.state(_job(entry.id))).id]
        except AttemptFailed as failed:
            if failed.kind.name != "not_found":
                raise
            return []

    async def state(self, batch: str) -> BatchState:
        try:
            return _state(await self.http.json("GET", f"/batchInferenceJobs/{batch}"))
        except AttemptFailed as failed:
            if failed.kind.name != "not_found":
                raise
            if batch in self._given_up:
                return BatchState(batch, outcome="cancelled", results=(_output(batch),))
            raise AttemptFailed(
                "not_found",
                "there is no such job. If it is gone for good, delete "
                f"{batch.removeprefix(_PREFIX)}.json in the ledger of batches to pay for its requests again",
            ) from failed

    async def cancel(self, batch: str) -> None:
        """Delete a job that has not begun; one that has is left to end by itself, within its 24 hours."""
        job = await self.http.json("GET", f"/batchInferenceJobs/{batch}")
        if _state_name(job) in _NOT_BEGUN and not _count(job.get("jobProgress") or {}, "totalProcessedRequests"):
            self._given_up.add(batch)
            await self.gone_is_fine("DELETE", f"/batchInferenceJobs/{batch}")

    async def delete(self, entry: Entry, results: tuple[str, ...]) -> None:
        for dataset in (entry.file, *results):
            if dataset:
                await self.gone_is_fine("DELETE", f"/datasets/{dataset}")

    async def read(self, results: str) -> AsyncIterator[Line]:
        """Yield the lines of all files of an output dataset: of the results and of the errors."""
        try:
            told = await self.http.json("GET", f"/datasets/{results}:getDownloadEndpoint")
        except AttemptFailed as failed:
            if failed.kind.name == "not_found" and results in map(_output, self._given_up):
                return
            raise
        for _, address in sorted((told.get("filenameToSignedUrls") or {}).items()):
            async for line in super().read(address):
                yield line

    def address(self, results: str) -> str:
        return results

    def line(self, raw: Any) -> Line:
        key, response, error = raw["custom_id"], raw.get("response") or {}, raw.get("error") or {}
        status = response.get("status_code") or 200
        answer = response.get("body", response)
        if not error and status == 200 and answer.get("choices"):
            return Line(key, answer)
        detail = error or answer.get("error") or answer
        detail = detail if isinstance(detail, dict) else {"message": str(detail)}
        told = detail.get("code") or detail.get("status_code") or status
        code = told if isinstance(told, int) and told >= 400 else 500
        return Line(key, failure=AttemptFailed(kind_of_status(code, detail), f"{told}: {detail.get('message') or ''}"))

    async def _send(self, file: Path, dataset: str) -> None:
        size = size_of(file)
        with file.open("rb") as content:
            if size <= self.most_direct:
                form = aiohttp.FormData()
                form.add_field("file", content, filename=file.name, content_type="application/jsonl")
                await self.http.json("POST", f"/datasets/{dataset}:upload", data=form)
                return
            asked = {"filenameToSize": {file.name: str(size)}}
            told = await self.http.json("POST", f"/datasets/{dataset}:getUploadEndpoint", json=asked)
            try:
                address = told["filenameToSignedUrls"][file.name]
            except UNREADABLE as error:
                raise AttemptFailed("bad_response", "the response has no address to upload to") from error
            headers = {
                "Content-Type": "application/octet-stream",
                "Content-Length": str(size),
                "x-goog-content-length-range": f"{size},{size}",
            }
            await self.http.json("PUT", address, headers=headers, data=content)
        await self.http.json("POST", f"/datasets/{dataset}:validateUpload", json={})

    async def _is_ready(self, dataset: str) -> bool:
        return bool((await self.http.json("GET", f"/datasets/{dataset}") or {}).get("state") == "READY")


def _job(tag: str) -> str:
    """Return the id of the job of a tag: ids begin with a letter."""
    return f"{_PREFIX}{tag}"


def _output(job: str) -> str:
    return f"{job}-out"


def _lines(file: Path) -> int:
    with file.open("rb") as content:
        return sum(1 for _ in content)


def _state_name(job: Mapping[str, Any]) -> str:
    return str(job.get("state") or "").removeprefix("JOB_STATE_")


def _count(progress: Mapping[str, Any], name: str) -> int:
    """Return a number of a job's progress: 64-bit numbers may be strings, and 0 may be left out."""
    return int(progress.get(name) or 0)


def _state(job: Any) -> BatchState:
    """Return what a job says of itself."""
    try:
        name = str(job["name"]).rsplit("/", 1)[-1]
        outcome = _OUTCOMES.get(_state_name(job), "")
        progress, status = job.get("jobProgress") or {}, job.get("status") or {}
        failed = _count(progress, "failedRequests")
        tokens = "inputTokens" in progress and outcome == "completed" and not failed
        told = bool(outcome and progress)
        # Without a processed request, a job that did not complete may have no output dataset.
        has_output = outcome == "completed" or not progress or _count(progress, "totalProcessedRequests")
        created = job.get("createTime")
        return BatchState(
            id=name,
            outcome=outcome,
            total=_count(progress, "totalInputRequests") or None,
            succeeded=_count(progress, "successfullyProcessedRequests") if told else None,
            failed=failed if told and outcome == "completed" else None,
            usage=(_count(progress, "inputTokens"), _count(progress, "outputTokens")) if tokens else None,
            results=(_output(name),) if outcome and has_output else (),
            ends_at=(datetime.fromisoformat(created) + _WINDOW).timestamp() if created else None,
            refusals=(Refusal(str(status.get("code") or ""), str(status.get("message") or "")),)
            if outcome == "failed"
            else (),
        )
    except UNREADABLE as error:
        unexpected = f"the job is described in an unexpected form ({type(error).__name__})"
        raise AttemptFailed("bad_response", unexpected) from error
