"""A fake teacher: a deterministic server of the OpenAI protocol with scripted answers, latencies and faults.

It is part of the package because users test pipelines, filters and clients with it, without a model:

    python -m tracefactory.serving.fake_server --port 8000 --script script.json

with `{use: openai, model: fake, base_url: "http://127.0.0.1:8000/v1"}`; or `{use: fake, script: {...}}`, which starts
and stops the server itself; or `async with FakeServer(FakeScript(...)) as server:` in a test. `FakeScript` documents
what can be scripted. The server answers POST /v1/chat/completions, GET /v1/models, GET /health, and GET /stats with its
request counts.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from aiohttp import web

from tracefactory.core.fingerprint import digest
from tracefactory.core.processes import end_with_parent, report_ready
from tracefactory.serving.fake_batches import FakeBatches
from tracefactory.serving.fake_fireworks import FakeFireworks
from tracefactory.serving.fake_protocols import FakeAnthropic, FakeGemini
from tracefactory.serving.fake_script import FakeScript, answer, chance, chat_body, pieces


class FakeServer:
    """A fake teacher in this process, on a loopback port; an async context manager.

    `port` 0 uses a free port. To the file `request_log`, each received request and each completion is appended as one
    JSON line with its time in a single write, so that the counts survive a kill.
    """

    def __init__(self, script: FakeScript | None = None, *, port: int = 0, request_log: Path | None = None) -> None:
        self.script = script or FakeScript()
        self.port = port
        self.received = 0
        self.completed: Counter[str] = Counter()  # by request key
        self.faults: Counter[str] = Counter()  # by kind
        self.in_flight = 0
        self.peak_in_flight = 0
        self.batches = FakeBatches(self.script, self.completed)
        self._attempts: Counter[str] = Counter()
        self._faults_met: Counter[str] = Counter()
        self._tokens, self._refilled_at = self.script.burst, time.monotonic()
        self._request_log = request_log
        self._log_fd: int | None = None
        self._runner: web.AppRunner | None = None

    @property
    def base_url(self) -> str:
        """The base URL for a client."""
        return f"http://127.0.0.1:{self.port}/v1"

    def stats(self) -> dict[str, Any]:
        """Return the response of GET /stats; `completed` counts billable completions by request key."""
        self.batches.advance()
        return {
            "batches": self.batches.stats(),
            "received": self.received,
            "completed_total": self.completed.total(),
            "completed": dict(self.completed),
            "faults": dict(self.faults),
            "in_flight": self.in_flight,
            "peak_in_flight": self.peak_in_flight,
        }

    async def __aenter__(self) -> FakeServer:
        """Start listening."""
        if self._request_log is not None:
            self._log_fd = os.open(self._request_log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        app = web.Application(client_max_size=64 * 2**20)
        app.router.add_post("/v1/chat/completions", self._chat)
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/health", self._health)
        app.router.add_get("/stats", self._stats)
        apis = (FakeAnthropic(self.batches), FakeGemini(self.batches), FakeFireworks(self.batches))
        for api in (self.batches, *apis):
            api.add_routes(app.router)
        app.router.add_post("/v1beta/openai/chat/completions", self._chat)
        app.router.add_post("/inference/v1/chat/completions", self._chat)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.port).start()
        self.port = self._runner.addresses[0][1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop listening and abort requests in flight."""
        if self._runner is not None:
            await self._runner.cleanup()
        if self._log_fd is not None:
            os.close(self._log_fd)

    async def _health(self, request: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    async def _models(self, request: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": "fake", "object": "model", "owned_by": "fake"}]})

    async def _stats(self, request: web.Request) -> web.Response:
        return web.json_response(self.stats())

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        self.received += 1
        self.in_flight += 1
        self.peak_in_flight = max(self.peak_in_flight, self.in_flight)
        try:
            return await self._answer(request)
        finally:
            self.in_flight -= 1

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        try:
            body = await request.json()
            if not isinstance(body["messages"], list) or not body["messages"]:
                raise TypeError("messages must be a non-empty list")
            key = digest(body)
            reply = answer(body, self.script)
            if self.script.filtered is not None and self.script.filtered in json.dumps(body["messages"]):
                return _error(400, "content_filter", "the prompt was filtered")
            if self.script.context and reply.prompt_tokens > self.script.context:
                return _error(400, "context_length_exceeded", f"{reply.prompt_tokens} tokens are too many")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            return _error(400, "invalid_request_error", f"{type(error).__name__}: {error}")
        self._attempts[key] += 1
        fault = self._fault(key, self._attempts[key])
        self._log({"event": "received", "key": key, "attempt": self._attempts[key], "fault": fault})
        if fault is not None:
            self._faults_met[key] += 1
            self.faults[fault] += 1
        if not self._within_limit():
            return _error(429, "rate_limit_exceeded", "too many requests", retry_after_s=self.script.retry_after_s)
        await asyncio.sleep(self._latency_s(key) + (self.script.hang_s if fault == "hang" else 0.0))
        if fault == "429":
            return _error(429, "rate_limit_exceeded", "too many requests", retry_after_s=self.script.retry_after_s)
        if fault == "500":
            return _error(500, "server_error", "a scripted failure")
        if (status := self._outage()) is not None:
            return _error(status, "outage", "a scripted outage")
        data = json.dumps(chat_body(key, body, reply)).encode()
        if fault == "drop":
            return await _send_half(request, data)
        # Counted before it is sent: a real server bills the completion even if the connection is lost.
        self.completed[key] += 1
        self._log({"event": "completed", "key": key, "attempt": self._attempts[key]})
        if body.get("stream"):
            return await self._stream(request, chat_body(key, body, reply), stalls=fault == "stall")
        return web.Response(body=data, content_type="application/json")

    def _fault(self, key: str, attempt: int) -> str | None:
        if self._faults_met[key] >= self.script.max_faults:
            return None
        script = self.script
        drawn = chance("fault", script.seed, key, attempt)
        rates = {
            "429": script.rate_429,
            "500": script.rate_500,
            "drop": script.rate_drop,
            "hang": script.rate_hang,
            "stall": script.rate_stall,
        }
        for kind, rate in rates.items():
            if drawn < rate:
                return kind
            drawn -= rate
        return None

    def _outage(self) -> int | None:
        """Return the status that a scripted outage answers with, None outside of one."""
        planned = self.script.outage
        if not planned or self.completed.total() < planned.get("after", 0):
            return None
        if self.faults["outage"] >= planned.get("requests", 1):
            return None
        self.faults["outage"] += 1
        return planned.get("status", 503)

    def _within_limit(self) -> bool:
        """Take a token from the bucket that refills at `limit` per second."""
        if not self.script.limit:
            return True
        now = time.monotonic()
        refilled = self._tokens + (now - self._refilled_at) * self.script.limit
        self._tokens, self._refilled_at = min(self.script.burst, refilled), now
        if self._tokens < 1:
            self.faults["limit"] += 1
            return False
        self._tokens -= 1
        return True

    async def _stream(self, request: web.Request, whole: dict[str, Any], *, stalls: bool) -> web.StreamResponse:
        """Send an answer as server-sent events, a token each."""
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        chunks = list(_chunks(whole))
        for number, chunk in enumerate(chunks):
            if stalls and number == len(chunks) // 2:
                await asyncio.sleep(self.script.hang_s)
            await response.write(b"data: " + json.dumps(chunk).encode() + b"\n\n")
            if self.script.token_s:
                await asyncio.sleep(self.script.token_s)
        await response.write(b"data: [DONE]\n\n")
        return response

    def _latency_s(self, key: str) -> float:
        if not self.script.latency_s:
            return 0.0
        shape = random.Random(f"{self.script.seed} {key}").lognormvariate(0.0, self.script.latency_sigma)
        return self.script.latency_s * shape

    def _log(self, event: dict[str, Any]) -> None:
        if self._log_fd is not None:
            os.write(self._log_fd, (json.dumps({**event, "at": time.time()}) + "\n").encode())


def _chunks(whole: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield a completion as the chunks of a stream: its texts token by token, the finish reason, the usage."""
    (choice,) = whole["choices"]
    head = {**whole, "object": "chat.completion.chunk", "usage": None}
    scored = list((choice["logprobs"] or {}).get("content") or ())
    for name in ("reasoning_content", "reasoning", "content", "refusal"):
        for piece in pieces(choice["message"].get(name) or ""):
            yield {**head, "choices": [{"index": 0, "delta": {name: piece}, "finish_reason": None}]}
    last = {
        "index": 0,
        "delta": {},
        "finish_reason": choice["finish_reason"],
        "logprobs": {"content": scored} if scored else None,
    }
    yield {**head, "choices": [last]}
    yield {**head, "choices": [], "usage": whole["usage"]}


def _error(status: int, code: str, message: str, *, retry_after_s: float | None = None) -> web.Response:
    headers = {} if retry_after_s is None else {"Retry-After": f"{retry_after_s:g}"}
    return web.json_response(
        {"error": {"message": message, "type": code, "code": code}}, status=status, headers=headers
    )


async def _send_half(request: web.Request, data: bytes) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "application/json", "Content-Length": str(len(data))})
    await response.prepare(request)
    await response.write(data[: len(data) // 2])
    if request.transport is not None:
        request.transport.close()
    return response


async def _serve(arguments: argparse.Namespace) -> None:
    async with FakeServer(
        FakeScript.load(arguments.script), port=arguments.port, request_log=arguments.request_log
    ) as server:
        if arguments.ready_fd is not None:
            report_ready(arguments.ready_fd, port=server.port)
        else:
            print(server.base_url, flush=True)
        await asyncio.Event().wait()


def main() -> None:
    """Run the server until it is interrupted, or until its parent exits if it passed --ready-fd.

    Raises:
        UserError: for a script that cannot be read.
    """
    parser = argparse.ArgumentParser(description="Run a deterministic fake of an OpenAI-compatible model server.")
    parser.add_argument("--port", type=int, default=0, help="port on 127.0.0.1; 0 uses a free port; the URL is printed")
    parser.add_argument("--script", default="{}", help="fields of FakeScript: a JSON file or a JSON object")
    parser.add_argument("--request-log", type=Path, help="append one JSON line per request and completion to this file")
    parser.add_argument("--ready-fd", type=int, help="for a parent process: pipe on which to report the port")
    arguments = parser.parse_args()
    if arguments.ready_fd is not None:
        end_with_parent()
    try:
        asyncio.run(_serve(arguments))
    except KeyboardInterrupt:
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
