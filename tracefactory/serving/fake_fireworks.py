"""Fireworks' batch inference as the fake teacher speaks it; see `fake_batches`.

Datasets are files of the jobs under their ids; a dataset is taken in at the second look at it.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

from aiohttp import web

from tracefactory.serving.fake_batches import Job, Jobs, answered, error

ACCOUNT = "acme"
"""The one account that is known."""
_ROOT = f"/v1/accounts/{ACCOUNT}"
_STATES = {"completed": "COMPLETED", "expired": "EXPIRED", "cancelled": "CANCELLED", "failed": "FAILED"}


class FakeFireworks:
    """Datasets and batch inference jobs of the account."""

    def __init__(self, jobs: Jobs) -> None:
        self.jobs = jobs
        self._declared: dict[str, int] = {}  # the examples of datasets
        self._looks: dict[str, int] = {}  # at datasets that were uploaded

    def add_routes(self, router: web.UrlDispatcher) -> None:
        """Add the routes."""
        router.add_post(f"{_ROOT}/datasets", self._declare)
        router.add_post(f"{_ROOT}/datasets/{{id}}:upload", self._upload)
        router.add_post(f"{_ROOT}/datasets/{{id}}:getUploadEndpoint", self._upload_endpoint)
        router.add_post(f"{_ROOT}/datasets/{{id}}:validateUpload", self._validate)
        router.add_put("/storage/{id}", self._put)
        router.add_get(f"{_ROOT}/datasets/{{id}}:getDownloadEndpoint", self._download_endpoint)
        router.add_get("/storage/{id}", self._download)
        router.add_get(f"{_ROOT}/datasets/{{id}}", self._dataset)
        router.add_delete(f"{_ROOT}/datasets/{{id}}", self._delete)
        router.add_post(f"{_ROOT}/batchInferenceJobs", self._create)
        router.add_get(f"{_ROOT}/batchInferenceJobs/{{id}}", self._get)
        router.add_delete(f"{_ROOT}/batchInferenceJobs/{{id}}", self._delete_job)

    async def _declare(self, request: web.Request) -> web.Response:
        body = await request.json()
        if body["datasetId"] in self._declared:
            return error(409, "already_exists", "there is such a dataset")
        self._declared[body["datasetId"]] = int(body["dataset"]["exampleCount"])
        return web.json_response({"name": body["datasetId"], "state": "UPLOADING"})

    async def _upload(self, request: web.Request) -> web.Response:
        file = (await request.post())["file"]
        if not isinstance(file, web.FileField):
            return error(400, "invalid_argument", "no file")
        return self._take(request.match_info["id"], file.file.read())

    async def _upload_endpoint(self, request: web.Request) -> web.Response:
        ((name, _),) = (await request.json())["filenameToSize"].items()
        address = f"{request.url.origin()}/storage/{request.match_info['id']}?signed=a%2Fb"
        return web.json_response({"filenameToSignedUrls": {name: address}})

    async def _put(self, request: web.Request) -> web.Response:
        content = await request.read()
        fits = request.headers["x-goog-content-length-range"] == f"{len(content)},{len(content)}"
        if not fits or not request.raw_path.endswith("?signed=a%2Fb"):
            return error(403, "forbidden", "the address was not signed for that")
        return self._take(request.match_info["id"], content)

    async def _validate(self, request: web.Request) -> web.Response:
        return web.json_response({})

    def _take(self, name: str, content: bytes) -> web.Response:
        if name in self._looks or len(content.splitlines()) != self._declared.get(name):
            return error(400, "invalid_argument", "it was uploaded already, or has another number of examples")
        self.jobs.files[name] = content
        self._looks[name] = 0
        return web.json_response({"id": name})

    async def _dataset(self, request: web.Request) -> web.Response:
        name = request.match_info["id"]
        if name not in self._declared:
            return error(404, "not_found", "no such dataset")
        if name not in self._looks:
            return web.json_response({"state": "UPLOADING"})
        self._looks[name] += 1
        return web.json_response({"state": "READY" if self._looks[name] > 1 else "UPLOADING"})

    async def _delete(self, request: web.Request) -> web.Response:
        name = request.match_info["id"]
        files = [one for one in self.jobs.files if one == name or one.startswith(f"{name}.")]
        for one in files:
            del self.jobs.files[one]
        if self._declared.pop(name, None) is None and not files:
            return error(404, "not_found", "no such dataset")
        return web.json_response({})

    async def _create(self, request: web.Request) -> web.StreamResponse:
        body, name = await request.json(), request.query["batchInferenceJobId"]
        content = self.jobs.files.get(body["inputDatasetId"].removeprefix(f"accounts/{ACCOUNT}/datasets/"))
        if name in self.jobs.jobs:
            return error(409, "already_exists", "there is such a job")
        if content is None or body["outputDatasetId"] != f"accounts/{ACCOUNT}/datasets/{name}-out":
            return error(400, "invalid_argument", "no such dataset")
        lines = [json.loads(line) for line in content.splitlines()]
        job = Job(id=name, lines={one["custom_id"]: {"model": body["model"], **one["body"]} for one in lines})
        return await answered(request, await self.jobs.create(job), lambda: self._described(job))

    async def _get(self, request: web.Request) -> web.Response:
        self.jobs.advance()
        job = self.jobs.jobs.get(request.match_info["id"])
        if job is None or job.deleted:
            return error(404, "not_found", "no such job")
        return web.json_response(self._described(job))

    async def _delete_job(self, request: web.Request) -> web.Response:
        job = self.jobs.jobs[request.match_info["id"]]
        job.deleted = job.cancelled = True
        self.jobs.advance()
        return web.json_response({})

    async def _download_endpoint(self, request: web.Request) -> web.Response:
        name = request.match_info["id"]
        job = self.jobs.jobs.get(name.removesuffix("-out"))
        if job is None or self.jobs.script.results_expired or not (job.answers or job.failures):
            return error(404, "not_found", "no such dataset")
        results = {file: content for file, content in self._results(job).items() if content}
        if job.looks == 0:
            self.jobs.files |= {f"{name}.{file}": content for file, content in results.items()}
        job.looks += 1
        addresses = {file: f"{request.url.origin()}/storage/{name}.{file}" for file in results}
        return web.json_response({"filenameToSignedUrls": addresses})

    async def _download(self, request: web.Request) -> web.StreamResponse:
        return await self.jobs.send_results(request, self.jobs.files[request.match_info["id"]])

    def _results(self, job: Job) -> dict[str, bytes]:
        answers = [
            json.dumps({"custom_id": key, "response": one, "error": None}).encode() for key, one in job.answers.items()
        ]
        failures = [
            json.dumps({"custom_id": key, "response": None, "error": {"code": code, "message": text}}).encode()
            for key, (code, _, text) in job.failures.items()
        ]
        return {"results.jsonl": b"\n".join(self.jobs.spoil(answers)), "error-data.jsonl": b"\n".join(failures)}

    def _described(self, job: Job) -> dict[str, Any]:
        script, waits = self.jobs.script, "PENDING" if self.jobs.script.stuck else "RUNNING"
        used = [one["usage"] for one in job.answers.values()]
        done = len(job.answers) + len(job.failures)
        progress = {
            "totalInputRequests": str(len(job.lines)),
            "totalProcessedRequests": str(done),
            "successfullyProcessedRequests": len(job.answers) + (script.miscounted if job.outcome else 0),
            "failedRequests": len(job.failures) + (script.misfailed if job.outcome else 0),
            "inputTokens": sum(one["prompt_tokens"] for one in used),
            "outputTokens": sum(one["completion_tokens"] for one in used) + (script.misbilled if job.outcome else 0),
        }
        return {
            "name": f"accounts/{ACCOUNT}/batchInferenceJobs/{job.id}",
            "state": f"JOB_STATE_{_STATES.get(job.outcome, waits)}",
            "createTime": datetime.fromtimestamp(job.created, UTC).isoformat().replace("+00:00", "Z"),
            "status": {"code": "RESOURCE_EXHAUSTED", "message": "too much"} if job.outcome == "failed" else None,
            "jobProgress": {name: number for name, number in progress.items() if number not in (0, "0")},
        }
