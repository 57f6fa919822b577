"""One client for every teacher: chat completions over the OpenAI protocol, with our own retries.

Nothing a server says is lost: answers are read as plain JSON, so reasoning fields and usage details survive.
"""

from __future__ import annotations

import asyncio
import email.utils
import hashlib
import json
import random
import re
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import aiohttp
import openai
from pydantic import SecretStr

from tracefactory.core.model import (
    ChatRequest,
    Completion,
    Endpoint,
    Environment,
    ModelSpec,
    RequestFailed,
    endpoint_for,
)
from tracefactory.serving.logprobs import packed

_CONNECT_S = 30.0  # to open a connection; the rest of `timeout_s` is the server's to think
_BACKOFF_CAP_S = 60.0
_SHUNNED_S = 10.0  # how long a server whose connection failed is asked only when all others failed too
_MESSAGE_CHARS = 500
_SURROGATE = re.compile("[\ud800-\udfff]")
# Machine-readable codes of error bodies that say more than the HTTP status; none of them gets better by waiting.
_FINAL_CODES = {
    "insufficient_quota": "quota",
    "content_filter": "content_filter",
    "context_length_exceeded": "context_length",  # OpenAI and those who follow it
    "exceed_context_size_error": "context_length",  # llama.cpp
}
_STATUS_KINDS = {401: "auth", 403: "auth", 404: "not_found", 408: "timeout", 409: "conflict", 429: "rate_limited"}
_RETRIED = frozenset({408, 409, 429})
# Words of servers for an answer they gave up on; the text they come with is not a completion.
_ABORTED = frozenset({"error", "abort"})
_UNREADABLE = (KeyError, IndexError, TypeError, AttributeError, ValueError)  # what reading foreign JSON raises

T = TypeVar("T")


class _AttemptFailed(Exception):  # noqa: N818  # internal: becomes RequestFailed when no attempt is left
    def __init__(self, kind: str, message: str, *, retryable: bool, retry_after_s: float | None = None) -> None:
        super().__init__(kind, message)
        self.kind, self.message, self.retryable, self.retry_after_s = kind, message, retryable, retry_after_s


class ChatClient:
    """Asks one model for completions, with at most `spec.concurrency` requests in flight.

    Owns its endpoint: `close` ends the server process, if there is one. `backoff_s` is the base of the exponential
    back-off, in seconds. Use from one event loop.
    """

    def __init__(
        self,
        spec: ModelSpec,
        endpoint: Endpoint,
        log_dir: Path,
        api_key: SecretStr | None = None,
        *,
        backoff_s: float = 0.5,
    ) -> None:
        self.spec = spec
        self._endpoint = endpoint
        self._log_dir = log_dir
        self._key = api_key
        self._backoff_s = backoff_s
        self._slots = asyncio.Semaphore(spec.concurrency)
        self._clients: dict[str, openai.AsyncOpenAI] = {}
        self._in_flight: Counter[str] = Counter()
        self._shunned_until: dict[str, float] = {}

    @classmethod
    def connect(cls, spec: ModelSpec, log_dir: Path, environment: Environment | None = None) -> ChatClient:
        """Return a client of `spec`, with the key and addresses of the environment. Servers start at the first request.

        Raises:
            UserError: for an unset environment variable or missing weights.
        """
        environment = environment or Environment()
        return cls(spec, endpoint_for(spec, environment), log_dir, spec.secret(environment))

    async def complete(self, request: ChatRequest) -> Completion:
        """Return the completion of `request`, trying again when that may help.

        A slot stays taken while the client waits to try again, so a struggling server gets less work.

        Raises:
            RequestFailed: when no attempt is left, or at once for a failure that would repeat itself.
            RunError: when a server process of our own cannot be kept alive.
        """

        def read(answer: object, attempt: int, seconds: float) -> Completion:
            return self._completion(request, answer, attempt, seconds)

        return await self._asked(lambda url: f"{url}/chat/completions", self.spec.body(request), read)

    async def ask(self, path: str, body: Mapping[str, Any] | None, read: Callable[[Any], T], *, near: str = "") -> T:
        """Return `read` of the JSON that another endpoint of the same servers answers; retries as `complete` does.

        `path` counts from the server's root; without a `body` it is a GET. Requests with the same `near` go to the same
        server while it answers: that is where their common beginning is cached. What `read` cannot read is the server's
        failure.

        Raises:
            RequestFailed, RunError: as `complete` does.
        """

        def checked(answer: object, attempt: int, seconds: float) -> T:
            try:
                return read(answer)
            except _UNREADABLE as error:
                raise _unreadable(error) from error

        return await self._asked(lambda url: url.removesuffix("/v1") + path, body, checked, near)

    async def _asked(
        self,
        address: Callable[[str], str],
        body: Mapping[str, Any] | None,
        read: Callable[[object, int, float], T],
        near: str = "",
    ) -> T:
        async with self._slots:
            attempt = 1
            while True:
                try:
                    url = self._chosen(await self._endpoint.start(self._log_dir), near)
                    started = time.monotonic()
                    answer = await self._attempt(url, address(url), body)
                    return read(answer, attempt, time.monotonic() - started)
                except _AttemptFailed as failed:
                    delay_s = self._delay_s(attempt, failed.retry_after_s)
                    if not failed.retryable or attempt > self.spec.retries or delay_s > self.spec.timeout_s:
                        raise RequestFailed(
                            failed.kind, failed.message, attempts=attempt, retryable=failed.retryable
                        ) from None
                await asyncio.sleep(delay_s)
                attempt += 1

    @property
    def notice(self) -> str:
        """What a person waiting for answers should know about the servers; mostly empty."""
        return self._endpoint.notice

    async def close(self) -> None:
        """Close the connections and end the server process, if there is one of ours."""
        for client in self._clients.values():
            await client.close()
        self._clients.clear()
        await self._endpoint.stop()

    async def _attempt(self, url: str, address: str, body: Mapping[str, Any] | None) -> object:
        self._in_flight[url] += 1
        try:
            if body is None:
                return await self._client(url).get(address, cast_to=object)
            return await self._client(url).post(address, cast_to=object, body=body)
        except openai.APIStatusError as error:
            raise self._from_status(error.status_code, error.body, error.response.headers) from error
        except openai.APIConnectionError as error:
            self._shunned_until[url] = time.monotonic() + _SHUNNED_S
            raise _from_connection(error, self.spec.timeout_s) from error
        except UnicodeEncodeError as error:
            raise _AttemptFailed("bad_request", "the messages hold text that is not UTF-8", retryable=False) from error
        except json.JSONDecodeError as error:
            raise _AttemptFailed("bad_response", "the answer was no JSON", retryable=True) from error
        finally:
            self._in_flight[url] -= 1

    def _client(self, url: str) -> openai.AsyncOpenAI:
        client = self._clients.get(url)
        if client is None:
            loopback = urlsplit(url).hostname in {"127.0.0.1", "localhost", "::1"}
            client = self._clients[url] = openai.AsyncOpenAI(
                base_url=url,
                # Never fall back to OPENAI_API_KEY: it is not meant for just any server.
                api_key=self._key.get_secret_value() if self._key is not None else "none",
                max_retries=0,
                timeout=openai.Timeout(self.spec.timeout_s, connect=min(_CONNECT_S, self.spec.timeout_s)),
                http_client=openai.DefaultAioHttpClient(trust_env=not loopback),
            )
        return client

    def _chosen(self, urls: list[str], near: str) -> str:
        """Return the server with the least to do, or the one that requests with this `near` go to."""
        # A dead server fails fast and so looks idle; without shunning it would draw every request.
        now = time.monotonic()
        shunned = {url: self._shunned_until.get(url, 0.0) > now for url in urls}
        if near:  # rendezvous hashing: only what a lost server had moves
            return min(urls, key=lambda url: (shunned[url], hashlib.sha256(f"{near} {url}".encode()).digest()))
        return min(urls, key=lambda url: (shunned[url], self._in_flight[url]))

    def _delay_s(self, attempt: int, retry_after_s: float | None) -> float:
        # Full jitter: clients that failed together do not come back together.
        jitter_s = random.uniform(0, min(_BACKOFF_CAP_S, self._backoff_s * 2.0 ** (attempt - 1)))
        return jitter_s if retry_after_s is None else retry_after_s + random.uniform(0, self._backoff_s)

    def _from_status(self, status: int, body: object, headers: Mapping[str, str]) -> _AttemptFailed:
        error = body.get("error", body) if isinstance(body, dict) else body
        detail = error if isinstance(error, dict) else {"message": error}
        for word in (detail.get("code"), detail.get("type")):
            if isinstance(word, str) and word in _FINAL_CODES:
                return _AttemptFailed(_FINAL_CODES[word], self._readable(status, detail), retryable=False)
        kind = _STATUS_KINDS.get(status, "server_error" if status >= 500 else "bad_request")
        retryable = status in _RETRIED or status >= 500
        waiting = retry_after_seconds(headers) if retryable else None
        return _AttemptFailed(kind, self._readable(status, detail), retryable=retryable, retry_after_s=waiting)

    def _readable(self, status: int, detail: Mapping[str, object]) -> str:
        message = " ".join(str(detail.get("message") or "").split())[:_MESSAGE_CHARS]
        if self._key is not None:
            message = message.replace(self._key.get_secret_value(), "***")
        return clean(f"HTTP {status}: {message}" if message else f"HTTP {status}")

    def _completion(self, request: ChatRequest, answer: object, attempt: int, seconds: float) -> Completion:
        if isinstance(answer, dict) and answer.get("error"):  # some gateways report errors with status 200
            code = answer["error"].get("code") if isinstance(answer["error"], dict) else None
            raise self._from_status(code if isinstance(code, int) else 500, answer, {})
        try:
            return _read(request, answer, self.spec.echoes_prefill, attempt, seconds)
        except _UNREADABLE as error:
            raise _unreadable(error) from error


def _read(request: ChatRequest, answer: Any, echoed: bool, attempt: int, seconds: float) -> Completion:
    choice = answer["choices"][0]
    message, finish_reason = choice["message"], choice["finish_reason"]
    if finish_reason is None or finish_reason in _ABORTED:
        raise _AttemptFailed("server_error", f"the server gave up (finish_reason {finish_reason})", retryable=True)
    usage = answer.get("usage") or {}
    content = clean(message.get("content") or "")
    if echoed and request.has_prefill:
        content = content.removeprefix(request.messages[-1]["content"])
    logprobs = choice.get("logprobs")
    return Completion(
        content=content,
        reasoning=_clean_or_none(message.get("reasoning_content") or message.get("reasoning")),
        refusal=_clean_or_none(message.get("refusal")),
        finish_reason=clean(finish_reason),
        prompt_tokens=usage.get("prompt_tokens") or 0,
        completion_tokens=usage.get("completion_tokens") or 0,
        cached_tokens=(usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0,
        served_model=clean(answer.get("model") or ""),
        system_fingerprint=clean(answer.get("system_fingerprint") or ""),
        logprobs=None if logprobs is None else packed(logprobs),
        created=time.time(),
        seconds=seconds,
        attempts=attempt,
    )


def _unreadable(error: Exception) -> _AttemptFailed:
    return _AttemptFailed(
        "bad_response", f"the answer is not what was asked for: {type(error).__name__}", retryable=True
    )


def clean(text: str) -> str:
    """Replace lone surrogates, which JSON can carry and UTF-8 (and so Arrow) cannot, by U+FFFD."""
    return _SURROGATE.sub("\ufffd", text)


def _clean_or_none(text: str | None) -> str | None:
    return None if text is None else clean(text)


def _from_connection(error: openai.APIConnectionError, timeout_s: float) -> _AttemptFailed:
    # The transport reports a connection lost before the headers as a time-out; the cause below it tells them apart.
    causes: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None:
        causes.append(cause)
        cause = cause.__cause__
    deepest = causes[-1]
    if isinstance(deepest, (aiohttp.ServerTimeoutError, TimeoutError)):
        return _AttemptFailed("timeout", f"no answer within {timeout_s:g} s", retryable=True)
    return _AttemptFailed("connection", f"the connection failed ({type(deepest).__name__})", retryable=True)


def retry_after_seconds(headers: Mapping[str, str]) -> float | None:
    """Return how long a server asks to wait (RFC 9110, 10.2.3: seconds or an HTTP date), or None if it does not say."""
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
