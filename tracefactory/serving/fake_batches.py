"""The batch API of OpenAI as the fake teacher speaks it, with the known traps; see `fake_script.BatchScript`.

A batch ends `delay_s` after it was created, whether or not anybody looks. What it answers is billed then, in the counts
by request that online requests are counted in too.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from aiohttp import web

from tracefactory.core.fingerprint import digest
from tracefactory.serving.fake_script import FakeScript, answer, chance, chat_body


@dataclass
class Job:
    """One batch: its lines by custom id, in the form of the OpenAI protocol, and what became of them.

    A result is an answer, a failure (status, code, message), or None for a line without an answer.
    """

    id: str
    lines: Mapping[str, Mapping[str, Any]]
    tag: str = ""
    file: str = ""
    created: float = field(default_factory=time.time)
    outcome: str = ""  # empty until it has ended
    cancelled: bool = False
    deleted: bool = False
    looks: int = 0
    results: dict[str, Any] = field(default_factory=dict)

    @property
    def answers(self) -> dict[str, Any]:
        """The answers by custom id, in an order of their own."""
        found = {key: one for key, one in self.results.items() if isinstance(one, dict)}
        return dict(sorted(found.items(), key=lambda item: digest(item[0])))

    @property
    def failures(self) -> dict[str, tuple[int, str, str]]:
        """The failures by custom id."""
        return {key: one for key, one in self.results.items() if isinstance(one, tuple)}

    @property
    def unfinished(self) -> list[str]:
        """The custom ids of lines without an answer."""
        return [key for key, one in self.results.items() if one is None]


class Jobs:
    """All batches of one fake teacher, of any protocol."""

    def __init__(self, script: FakeScript, billed: Counter[str]) -> None:
        self.model, self.script, self._billed = script, script.batch, billed
        self.by_custom_id: Counter[str] = Counter()  # what was billed
        self.files: dict[str, bytes] = {}
        self.jobs: dict[str, Job] = {}
        self.met: Counter[str] = Counter()  # traps that were sprung

    def add_file(self, content: bytes) -> str:
        """Keep a file and return its id."""
        self.met["files"] += 1
        name = f"file-{self.met['files']}"
        self.files[name] = content
        return name

    def has_met(self, trap: str, times: int) -> bool:
        """Return whether a trap was sprung so many times; else it is sprung now."""
        if self.met[trap] >= times:
            return True
        self.met[trap] += 1
        return False

    async def create(self, job: Job) -> tuple[int, str]:
        """Take a batch, as scripted; return the status and what to say. Status 0 means that the response is lost."""
        if self.script.forbidden:
            return 403, "batches are not allowed for this key"
        if not self.has_met("refused_creates", self.script.refuse_creates):
            return 429, "too many batches"
        if not self.has_met("failed_creates", self.script.fail_creates):
            return 500, "a scripted failure"
        self.jobs[job.id] = job
        self.advance()
        if not self.has_met("lost_creates", self.script.lose_creates):
            return 0, ""
        await asyncio.sleep(0)
        return 200, ""

    def advance(self) -> None:
        """End the batches whose time has come."""
        for job in self.jobs.values():
            is_due = not self.script.stuck and time.time() - job.created >= self.script.delay_s
            if not job.outcome and (job.cancelled or is_due):
                self._end(job)

    def _end(self, job: Job) -> None:
        for number, (key, body) in enumerate(job.lines.items(), 1):
            drawn = chance("batch", self.model.seed, key)
            if 0 < self.script.most_enqueued < len(job.lines) or (
                number == self.script.refused_line and len(self.jobs) == 1
            ):
                job.outcome = "failed"
            too_late = job.cancelled and (self.script.stuck or time.time() - job.created < self.script.delay_s)
            if too_late or drawn < self.script.unfinished:
                job.results[key] = None
            elif drawn < self.script.unfinished + self.script.failing:
                job.results[key] = (500, "server_error", "a scripted failure")
            elif drawn < self.script.unfinished + self.script.failing + self.script.refused:
                job.results[key] = (400, "invalid_value", "a scripted refusal")
            else:
                job.results[key] = chat_body(digest(dict(body)), body, answer(body, self.model))
        if job.outcome == "failed":
            job.results = {}
            return
        expired = "expired" if job.unfinished else "completed"
        job.outcome = "cancelled" if job.cancelled else expired
        for key in job.answers:
            self._billed[digest(dict(job.lines[key]))] += 1
            self.by_custom_id[key] += 1

    def bill(self, body: Mapping[str, Any]) -> None:
        """Count an answer that was not in a batch."""
        self._billed[digest(dict(body))] += 1

    def listed(self) -> list[Job]:
        """Return the batches that are listed by now, the newest first."""
        seen = [one for one in self.jobs.values() if time.time() - one.created >= self.script.listed_after_s]
        return sorted(seen, key=lambda one: one.created, reverse=True)

    def spoil(self, lines: list[bytes]) -> list[bytes]:
        """Return the lines of answers as the script has them: some missing, some cut off."""
        lines = lines[self.script.missing :]
        return [
            line[: len(line) * 2 // 3] if number < self.script.malformed else line for number, line in enumerate(lines)
        ]

    async def send_results(self, request: web.Request, content: bytes) -> web.StreamResponse:
        """Send a file of results, as scripted."""
        if self.script.results_expired:
            return error(404, "not_found", "the file has expired")
        if self.has_met("broken_downloads", self.script.broken_downloads):
            return web.Response(body=content, content_type="application/jsonl")
        response = web.StreamResponse(headers={"Content-Length": str(len(content))})
        await response.prepare(request)
        await response.write(content[: len(content) // 2])
        if request.transport is not None:
            request.transport.close()
        return response


class FakeBatches(Jobs):
    """The batch API of OpenAI."""

    def add_routes(self, router: web.UrlDispatcher) -> None:
        """Add the routes."""
        router.add_post("/v1/files", self._upload)
        router.add_post("/v1/files/upload", self._upload)
        router.add_get("/v1/files/{id}/content", self._content)
        router.add_delete("/v1/files/{id}", self._delete)
        router.add_post("/v1/batches", self._create)
        router.add_get("/v1/batches", self._list)
        router.add_get("/v1/batches/{id}", self._get)
        router.add_post("/v1/batches/{id}/cancel", self._cancel)

    def stats(self) -> dict[str, Any]:
        """Return what GET /stats says of batches."""
        return {
            "created": len(self.jobs),
            "sizes": [len(job.lines) for job in self.jobs.values()],
            "outcomes": [job.outcome for job in self.jobs.values()],
            "billed": dict(self.by_custom_id),
            "files": sorted(self.files),
            "traps": dict(self.met),
        }

    async def _upload(self, request: web.Request) -> web.Response:
        form = await request.post()
        file = form["file"]
        copy = self.script.dialect == "together"
        expected = ("/v1/files/upload", "batch-api") if copy else ("/v1/files", "batch")
        if (request.path, form.get("purpose")) != expected or not isinstance(file, web.FileField):
            return error(400, "invalid_purpose", f"the purpose of a batch's file is {expected[1]}, at {expected[0]}")
        name = self.add_file(file.file.read())
        return web.json_response({"id": name, "object": "file", "purpose": "batch"})

    async def _content(self, request: web.Request) -> web.StreamResponse:
        content = self.files.get(request.match_info["id"])
        return error(404, "not_found", "no such file") if content is None else await self.send_results(request, content)

    async def _delete(self, request: web.Request) -> web.Response:
        if self.files.pop(request.match_info["id"], None) is None:
            return error(404, "not_found", "no such file")
        return web.json_response({"deleted": True})

    async def _create(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        content = self.files.get(body["input_file_id"])
        if content is None or body["endpoint"] != "/v1/chat/completions":
            return error(400, "invalid_request_error", "no such input file or endpoint")
        lines = [json.loads(line) for line in content.splitlines()]
        if len(lines) > 50_000 or len(content) > 200_000_000:
            return error(400, "invalid_request_error", "the file is too large")
        job = Job(
            id=f"batch_{len(self.jobs) + 1}",
            lines={line["custom_id"]: line["body"] for line in lines},
            tag=json.dumps(body.get("metadata") or {}),
            file=body["input_file_id"],
        )
        return await answered(request, await self.create(job), lambda: self._created(job))

    async def _list(self, request: web.Request) -> web.Response:
        self.advance()
        jobs = self.listed()
        if self.script.dialect == "together":
            return web.json_response([self._described(job) for job in jobs])
        after = request.query.get("after")
        start = next((number + 1 for number, job in enumerate(jobs) if job.id == after), 0)
        page = jobs[start : start + 2]  # small, so that pages are turned
        has_more = start + len(page) < len(jobs)
        return web.json_response({"data": [self._described(job) for job in page], "has_more": has_more})

    async def _get(self, request: web.Request) -> web.Response:
        self.advance()
        job = self.jobs.get(request.match_info["id"])
        return error(404, "not_found", "no such batch") if job is None else web.json_response(self._described(job))

    async def _cancel(self, request: web.Request) -> web.Response:
        job = self.jobs[request.match_info["id"]]
        if job.outcome:
            return error(409, "conflict", "it has ended")
        job.cancelled = True
        return web.json_response(self._described(job))

    def _created(self, job: Job) -> dict[str, Any]:
        described = self._described(job)
        return {"job": described} if self.script.dialect == "together" else described

    def _described(self, job: Job) -> dict[str, Any]:
        described = self._described_by_openai(job)
        dated: dict[str, Any] = {"created_at": datetime.fromtimestamp(job.created, UTC).isoformat()}
        if self.script.dialect == "together":
            kept = ("id", "input_file_id", "output_file_id", "error_file_id", "status")
            states = {"status": described["status"].upper(), "job_deadline": dated["created_at"], "error": ""}
            return {name: described[name] for name in kept} | dated | states
        if self.script.dialect == "novita":
            status = "PROGRESS" if not job.outcome else job.outcome.upper()
            files = {name: described[name] or "" for name in ("output_file_id", "error_file_id")}
            told = {name: described[name] for name in ("id", "input_file_id", "request_counts")}
            return told | files | dated | {"errors": "", "expires_at": None, "metadata": None, "status": status}
        return described

    def _described_by_openai(self, job: Job) -> dict[str, Any]:
        output, errors = self._result_files(job)
        answers = job.answers.values()
        used = {name: sum(one["usage"][name] for one in answers) for name in ("prompt_tokens", "completion_tokens")}
        counts = {
            "total": 0 if job.outcome == "failed" else len(job.lines),
            "completed": len(job.answers) + (self.script.miscounted if job.outcome else 0),
            "failed": len(job.failures) + (self.script.misfailed if job.outcome else 0),
        }
        usage = {
            "input_tokens": used["prompt_tokens"],
            "output_tokens": used["completion_tokens"] + (self.script.misbilled if job.outcome else 0),
        }
        refusals = []
        if job.outcome == "failed" and self.script.refused_line:
            refusals = [{"code": "invalid_value", "message": "a bad line", "line": self.script.refused_line}]
        elif job.outcome == "failed":
            refusals = [{"code": "token_limit_exceeded", "message": "Enqueued token limit reached", "line": None}]
        return {
            "id": job.id,
            "object": "batch",
            "status": job.outcome or "in_progress",
            "input_file_id": job.file,
            "output_file_id": output,
            "error_file_id": errors,
            "metadata": json.loads(job.tag),
            "created_at": job.created,
            "expires_at": int(job.created) + 86400,
            "request_counts": counts,
            "usage": usage,
            "errors": {"data": refusals} if refusals else None,
        }

    def _result_files(self, job: Job) -> tuple[str | None, str | None]:
        """Return the ids of the output and of the error file: null without answers, null or "" without failures."""
        if not job.outcome:
            return None, None
        output, errors = f"output-{job.id}", f"errors-{job.id}"
        if job.looks == 0:
            answers = [
                json.dumps({"custom_id": key, "response": {"status_code": 200, "body": one}, "error": None}).encode()
                for key, one in job.answers.items()
            ]
            code = "batch_cancelled" if job.cancelled else "batch_expired"
            failed = [
                {
                    "custom_id": key,
                    "response": {"status_code": one[0], "body": {"error": {"code": one[1], "message": one[2]}}},
                    "error": None,
                }
                for key, one in job.failures.items()
            ] + [
                {"custom_id": key, "response": None, "error": {"code": code, "message": "not executed in time"}}
                for key in job.unfinished
            ]
            if answers:
                self.files[output] = b"\n".join(self.spoil(answers))
            if failed:
                self.files[errors] = b"\n".join(json.dumps(line).encode() for line in reversed(failed))
        job.looks += 1
        shown = job.answers and job.looks > self.script.late_output
        nothing = "" if self.script.empty_error_file else None
        return output if shown else None, errors if job.failures or job.unfinished else nothing


def error(status: int, code: str, message: str) -> web.Response:
    """Return an error as OpenAI writes it."""
    return web.json_response({"error": {"message": message, "type": code, "code": code}}, status=status)


async def answered(request: web.Request, outcome: tuple[int, str], describe: Any) -> web.StreamResponse:
    """Answer a create: with the batch, with an error, or not at all."""
    status, message = outcome
    if status == 200:
        return web.json_response(describe())
    if status:
        return error(status, "rate_limit_exceeded" if status == 429 else "server_error", message)
    if request.transport is not None:
        request.transport.close()
    return web.Response()
