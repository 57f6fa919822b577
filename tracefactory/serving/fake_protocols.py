"""Anthropic's messages and batches, and Google's batches, as the fake teacher speaks them; see `fake_batches`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from aiohttp import web

from tracefactory.core.fingerprint import digest
from tracefactory.serving.fake_batches import Job, Jobs, answered, error
from tracefactory.serving.fake_script import answer, chat_body

_REASONS = {"stop": "end_turn", "length": "max_tokens"}


class FakeAnthropic:
    """The messages protocol at /v1/messages, online and in batches."""

    def __init__(self, jobs: Jobs) -> None:
        self.jobs = jobs

    def add_routes(self, router: web.UrlDispatcher) -> None:
        """Add the routes."""
        router.add_post("/v1/messages", self._messages)
        router.add_post("/v1/messages/batches", self._create)
        router.add_get("/v1/messages/batches", self._list)
        router.add_get("/v1/messages/batches/{id}", self._get)
        router.add_get("/v1/messages/batches/{id}/results", self._results)
        router.add_post("/v1/messages/batches/{id}/cancel", self._cancel)
        router.add_delete("/v1/messages/batches/{id}", self._delete)

    async def _messages(self, request: web.Request) -> web.Response:
        if "anthropic-version" not in request.headers or "Authorization" in request.headers:
            return _refused(400, "invalid_request_error", "anthropic-version is needed, and no Authorization")
        body = _chat_request(await request.json())
        self.jobs.bill(body)
        return web.json_response(_message(chat_body(digest(body), body, answer(body, self.jobs.model))))

    async def _create(self, request: web.Request) -> web.StreamResponse:
        given = (await request.json())["requests"]
        lines = {one["custom_id"]: _chat_request(one["params"]) for one in given}
        job = Job(id=f"msgbatch_{len(self.jobs.jobs) + 1}", lines=lines)
        return await answered(request, await self.jobs.create(job), lambda: self._described(request, job))

    async def _list(self, request: web.Request) -> web.Response:
        self.jobs.advance()
        jobs = [job for job in self.jobs.listed() if not job.deleted]
        after = request.query.get("after_id")
        start = next((number + 1 for number, job in enumerate(jobs) if job.id == after), 0)
        page = jobs[start : start + 2]
        described = [self._described(request, job) for job in page]
        return web.json_response({"data": described, "has_more": start + len(page) < len(jobs)})

    async def _get(self, request: web.Request) -> web.Response:
        self.jobs.advance()
        job = self.jobs.jobs.get(request.match_info["id"])
        if job is None or job.deleted:
            return _refused(404, "not_found_error", "no such batch")
        return web.json_response(self._described(request, job))

    async def _results(self, request: web.Request) -> web.StreamResponse:
        job = self.jobs.jobs[request.match_info["id"]]
        lines = [
            json.dumps({"custom_id": key, "result": {"type": "succeeded", "message": _message(one)}}).encode()
            for key, one in job.answers.items()
        ]
        lines = self.jobs.spoil(lines)
        for key, (status, _, text) in job.failures.items():
            kind = "invalid_request_error" if status == 400 else "api_error"
            failed = {"type": "error", "error": {"type": kind, "message": text}}
            lines.append(json.dumps({"custom_id": key, "result": {"type": "errored", "error": failed}}).encode())
        ended = "canceled" if job.cancelled else "expired"
        lines += [json.dumps({"custom_id": key, "result": {"type": ended}}).encode() for key in job.unfinished]
        return await self.jobs.send_results(request, b"\n".join(sorted(lines)))

    async def _cancel(self, request: web.Request) -> web.Response:
        job = self.jobs.jobs[request.match_info["id"]]
        job.cancelled = job.cancelled or not job.outcome
        return web.json_response(self._described(request, job))

    async def _delete(self, request: web.Request) -> web.Response:
        self.jobs.jobs[request.match_info["id"]].deleted = True
        return web.json_response({"type": "message_batch_deleted"})

    def _described(self, request: web.Request, job: Job) -> dict[str, Any]:
        ended, unfinished = bool(job.outcome), len(job.unfinished)
        counts = {
            "processing": 0 if ended else len(job.lines),
            "succeeded": len(job.answers),
            "errored": len(job.failures),
            "canceled": unfinished if job.cancelled else 0,
            "expired": 0 if job.cancelled else unfinished,
        }
        if ended and (more := self.jobs.script.miscounted):
            counts |= {"succeeded": counts["succeeded"] + more, "errored": counts["errored"] - more}
        if ended and (more := self.jobs.script.misfailed):
            counts |= {"errored": counts["errored"] + more, "expired": counts["expired"] - more}
        created = datetime.fromtimestamp(job.created, UTC)
        return {
            "id": job.id,
            "type": "message_batch",
            "processing_status": "ended" if ended else "in_progress",
            "request_counts": counts,
            "created_at": created.isoformat().replace("+00:00", "Z"),
            "expires_at": datetime.fromtimestamp(job.created + 86400, UTC).isoformat().replace("+00:00", "Z"),
            "results_url": f"{request.url.origin()}/v1/messages/batches/{job.id}/results" if ended else None,
        }


class FakeGemini:
    """Google's batches in file mode, at /v1beta."""

    def __init__(self, jobs: Jobs) -> None:
        self.jobs = jobs

    def add_routes(self, router: web.UrlDispatcher) -> None:
        """Add the routes."""
        router.add_post("/upload/v1beta/files", self._upload)
        router.add_get("/download/v1beta/files/{id}:download", self._download)
        router.add_delete("/v1beta/files/{id}", self._delete)
        router.add_post("/v1beta/models/{model}:batchGenerateContent", self._create)
        router.add_get("/v1beta/batches", self._list)
        router.add_get("/v1beta/batches/{id}", self._get)
        router.add_post("/v1beta/batches/{id}:cancel", self._cancel)

    async def _upload(self, request: web.Request) -> web.Response:
        if request.headers["X-Goog-Upload-Command"] == "start":
            address = f"{request.url.origin()}/upload/v1beta/files?upload_id=1"
            return web.Response(headers={"X-Goog-Upload-URL": address})
        name = self.jobs.add_file(await request.read())
        return web.json_response({"file": {"name": f"files/{name}"}})

    async def _download(self, request: web.Request) -> web.StreamResponse:
        content = self.jobs.files.get(request.match_info["id"])
        if content is None:
            return error(404, "not_found", "no such file")
        return await self.jobs.send_results(request, content)

    async def _delete(self, request: web.Request) -> web.Response:
        if self.jobs.files.pop(request.match_info["id"], None) is None:
            return error(404, "not_found", "no such file")
        return web.json_response({})

    async def _create(self, request: web.Request) -> web.StreamResponse:
        batch = (await request.json())["batch"]
        content = self.jobs.files.get(batch["input_config"]["file_name"].removeprefix("files/"))
        if content is None:
            return error(400, "invalid_argument", "no such file")
        lines = [json.loads(line) for line in content.splitlines()]
        job = Job(
            id=f"batches/{len(self.jobs.jobs) + 1}",
            lines={one["key"]: _from_gemini(one["request"], request.match_info["model"]) for one in lines},
            tag=batch["display_name"],
        )
        return await answered(request, await self.jobs.create(job), lambda: self._described(job))

    async def _list(self, request: web.Request) -> web.Response:
        self.jobs.advance()
        jobs, start = self.jobs.listed(), int(request.query.get("pageToken", "0"))
        page = {"operations": [self._described(job) for job in jobs[start : start + 2]]}
        return web.json_response(page | ({"nextPageToken": str(start + 2)} if start + 2 < len(jobs) else {}))

    async def _get(self, request: web.Request) -> web.Response:
        self.jobs.advance()
        job = self.jobs.jobs.get(f"batches/{request.match_info['id']}")
        return error(404, "not_found", "no such batch") if job is None else web.json_response(self._described(job))

    async def _cancel(self, request: web.Request) -> web.Response:
        job = self.jobs.jobs[f"batches/{request.match_info['id']}"]
        job.cancelled = job.cancelled or not job.outcome
        return web.json_response({})

    def _described(self, job: Job) -> dict[str, Any]:
        states = {"": "RUNNING", "completed": "SUCCEEDED", "failed": "FAILED", "expired": "EXPIRED"}
        stats = {"requestCount": str(len(job.lines))}
        if job.outcome and (succeeded := len(job.answers) + self.jobs.script.miscounted):
            stats["successfulRequestCount"] = str(succeeded)  # int64 is a string, and 0 is left out
        if job.outcome and (failed := len(job.failures) + self.jobs.script.misfailed):
            stats["failedRequestCount"] = str(failed)
        found: dict[str, Any] = {
            "name": job.id,
            "metadata": {
                "displayName": job.tag,
                "state": f"BATCH_STATE_{states.get(job.outcome, 'CANCELLED')}",
                "createTime": datetime.fromtimestamp(job.created, UTC).isoformat(),
                "batchStats": stats,
            },
        }
        if job.outcome == "failed":
            found["error"] = {"code": 8, "message": "too many enqueued tokens"}
        elif job.outcome and (job.answers or job.failures):
            found["response"] = {"responsesFile": f"files/{self._results(job)}"}
        return found

    def _results(self, job: Job) -> str:
        name = f"responses-{job.id.removeprefix('batches/')}"
        if job.looks == 0:
            lines = self.jobs.spoil(
                [json.dumps({"key": key, "response": _to_gemini(one)}).encode() for key, one in job.answers.items()]
            )
            for key, (status, _, text) in job.failures.items():
                code = 3 if status == 400 else 13
                lines.append(json.dumps({"key": key, "error": {"code": code, "message": text}}).encode())
            self.jobs.files[name] = b"\n".join(lines)
        job.looks += 1
        return name


def _refused(status: int, kind: str, message: str) -> web.Response:
    return web.json_response({"type": "error", "error": {"type": kind, "message": message}}, status=status)


def _chat_request(body: Mapping[str, Any]) -> dict[str, Any]:
    """Return a messages request in the form of the OpenAI protocol."""
    kept = {name: value for name, value in body.items() if name not in {"system", "stop_sequences"}}
    system = [{"role": "system", "content": body["system"]}] if "system" in body else []
    stop = {"stop": body["stop_sequences"]} if "stop_sequences" in body else {}
    return {**kept, **stop, "messages": [*system, *body["messages"]]}


def _message(chat: Mapping[str, Any]) -> dict[str, Any]:
    """Return a chat completion as a message; what is in think tags becomes a block of thinking."""
    (choice,) = chat["choices"]
    text = choice["message"].get("content") or ""
    blocks = [{"type": "text", "text": text}]
    if text.startswith("<think>") and "</think>" in text:
        thinking, text = text.removeprefix("<think>").split("</think>", 1)
        blocks = [{"type": "thinking", "thinking": thinking.strip()}, {"type": "text", "text": text.strip()}]
    usage = chat["usage"]
    return {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": chat["model"],
        "content": blocks,
        "stop_reason": _REASONS[choice["finish_reason"]],
        "usage": {"input_tokens": usage["prompt_tokens"], "output_tokens": usage["completion_tokens"]},
    }


def _from_gemini(request: Mapping[str, Any], model: str) -> dict[str, Any]:
    """Return a GenerateContentRequest in the form of the OpenAI protocol."""
    roles = {"model": "assistant"}
    messages = [
        {"role": roles.get(one["role"], one["role"]), "content": one["parts"][0]["text"]} for one in request["contents"]
    ]
    system = [
        {"role": "system", "content": one["text"]} for one in request.get("systemInstruction", {}).get("parts", ())
    ]
    config = request.get("generationConfig", {})
    names = {"temperature": "temperature", "topP": "top_p", "maxOutputTokens": "max_tokens", "seed": "seed"}
    params = {names[name]: value for name, value in config.items() if name in names}
    stop = {"stop": config["stopSequences"]} if "stopSequences" in config else {}
    return {**params, **stop, "model": model, "messages": [*system, *messages]}


def _to_gemini(chat: Mapping[str, Any]) -> dict[str, Any]:
    """Return a chat completion as a GenerateContentResponse; what is in think tags becomes a thought."""
    message = _message(chat)
    parts = [
        {"text": block["thinking"], "thought": True} if block["type"] == "thinking" else {"text": block["text"]}
        for block in message["content"]
    ]
    reason = "STOP" if message["stop_reason"] == "end_turn" else "MAX_TOKENS"
    usage = message["usage"]
    return {
        "candidates": [{"content": {"role": "model", "parts": parts}, "finishReason": reason}],
        "usageMetadata": {
            "promptTokenCount": usage["input_tokens"],
            "candidatesTokenCount": usage["output_tokens"],
        },
        "modelVersion": message["model"],
    }
