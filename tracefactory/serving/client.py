"""The client for all chat models: completions over the OpenAI protocol, with retries.

Responses are read as plain JSON, so fields that the OpenAI library does not know, such as reasoning, are kept.
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

_CONNECT_S = 30.0  # to open a connection; `timeout_s` applies to the response
_MAX_BACKOFF_S = 60.0
_AVOIDED_S = 10.0  # how long a server is avoided after a failed connection, while there is another one
_MESSAGE_CHARS = 500
_SURROGATE = re.compile("[\ud800-\udfff]")
# Error codes that are more specific than the HTTP status; none of them is worth a retry.
_FINAL_CODES = {
    "insufficient_quota": "quota",
    "content_filter": "content_filter",
    "context_length_exceeded": "context_length",  # OpenAI and compatible servers
    "exceed_context_size_error": "context_length",  # llama.cpp
}
_STATUS_KINDS = {401: "auth", 403: "auth", 404: "not_found", 408: "timeout", 409: "conflict", 429: "rate_limited"}
_RETRIED = frozenset({408, 409, 429})
# Finish reasons of aborted requests; the text in such a response is not a completion.
_ABORTED = frozenset({"error", "abort"})
_UNREADABLE = (KeyError, IndexError, TypeError, AttributeError, ValueError)  # what reading unexpected JSON raises

T = TypeVar("T")


class _AttemptFailed(Exception):  # noqa: N818  # internal: becomes RequestFailed when no attempt is left
    def __init__(self, kind: str, message: str, *, retryable: bool, retry_after_s: float | None = None) -> None:
        super().__init__(kind, message)
        self.kind, self.message, self.retryable, self.retry_after_s = kind, message, retryable, retry_after_s


class ChatClient:
    """Requests completions from one model, with at most `spec.concurrency` requests in flight.

    The client owns its endpoint: `close` stops a managed server process. `backoff_s` is the base of the exponential
    backoff, in seconds. Use it from one event loop.
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
        self._avoided_until: dict[str, float] = {}

    @classmethod
    def connect(cls, spec: ModelSpec, log_dir: Path, environment: Environment | None = None) -> ChatClient:
        """Return a client for `spec`, with the API key and URLs of the environment. Servers start at the first request.

        Raises:
            UserError: for an unset environment variable or missing weights.
        """
        environment = environment or Environment()
        return cls(spec, endpoint_for(spec, environment), log_dir, spec.secret(environment))

    async def complete(self, request: ChatRequest) -> Completion:
        """Return the completion of `request`, with retries.

        A request keeps its slot while it waits for a retry, so an overloaded server gets fewer requests.

        Raises:
            RequestFailed: when no attempt is left, or at once when a retry cannot help.
            RunError: when a managed server process cannot be kept running.
        """

        def read(answer: object, attempt: int, seconds: float) -> Completion:
            return self._completion(request, answer, attempt, seconds)

        return await self._send(lambda url: f"{url}/chat/completions", self.spec.body(request), read)

    async def ask(self, path: str, body: Mapping[str, Any] | None, read: Callable[[Any], T], *, near: str = "") -> T:
        """Return `read` of the JSON response of another endpoint of the same servers, with the retries of `complete`.

        `path` starts at the server's root; without a `body` the request is a GET. Requests with the same `near` go to
        the same server while it is up, because it has cached their common prefix. An error of `read` counts as a
        failure of the server.

        Raises:
            RequestFailed, RunError: as `complete` does.
        """

        def checked(answer: object, attempt: int, seconds: float) -> T:
            try:
                return read(answer)
            except _UNREADABLE as error:
                raise _unreadable(error) from error

        return await self._send(lambda url: url.removesuffix("/v1") + path, body, checked, near)

    async def _send(
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
                    url = self._choose(await self._endpoint.start(self._log_dir), near)
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
        """The status of the servers for the user, empty when there is nothing to report."""
        return self._endpoint.notice

    async def close(self) -> None:
        """Close the connections and stop a managed server process."""
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
            self._avoided_until[url] = time.monotonic() + _AVOIDED_S
            raise _from_connection(error, self.spec.timeout_s) from error
        except UnicodeEncodeError as error:
            raise _AttemptFailed(
                "bad_request", "the messages contain text that is not UTF-8", retryable=False
            ) from error
        except json.JSONDecodeError as error:
            raise _AttemptFailed("bad_response", "the response is not JSON", retryable=True) from error
        finally:
            self._in_flight[url] -= 1

    def _client(self, url: str) -> openai.AsyncOpenAI:
        client = self._clients.get(url)
        if client is None:
            loopback = urlsplit(url).hostname in {"127.0.0.1", "localhost", "::1"}
            client = self._clients[url] = openai.AsyncOpenAI(
                base_url=url,
                # Do not fall back to OPENAI_API_KEY, which must not be sent to other servers.
                api_key=self._key.get_secret_value() if self._key is not None else "none",
                max_retries=0,
                timeout=openai.Timeout(self.spec.timeout_s, connect=min(_CONNECT_S, self.spec.timeout_s)),
                http_client=openai.DefaultAioHttpClient(trust_env=not loopback),
            )
        return client

    def _choose(self, urls: list[str], near: str) -> str:
        """Return the server with the fewest requests in flight, or the one assigned to `near`."""
        # A dead server fails fast and so looks idle; if it were not avoided, it would get every request.
        now = time.monotonic()
        avoided = {url: self._avoided_until.get(url, 0.0) > now for url in urls}
        if near:  # rendezvous hashing: when a server is lost, only its requests move
            return min(urls, key=lambda url: (avoided[url], hashlib.sha256(f"{near} {url}".encode()).digest()))
        return min(urls, key=lambda url: (avoided[url], self._in_flight[url]))

    def _delay_s(self, attempt: int, retry_after_s: float | None) -> float:
        # Full jitter: clients that failed at the same time do not retry at the same time.
        jitter_s = random.uniform(0, min(_MAX_BACKOFF_S, self._backoff_s * 2.0 ** (attempt - 1)))
        return jitter_s if retry_after_s is None else retry_after_s + random.uniform(0, self._backoff_s)

    def _from_status(self, status: int, body: object, headers: Mapping[str, str]) -> _AttemptFailed:
        error = body.get("error", body) if isinstance(body, dict) else body
        detail = error if isinstance(error, dict) else {"message": error}
        for code in (detail.get("code"), detail.get("type")):
            if isinstance(code, str) and code in _FINAL_CODES:
                return _AttemptFailed(_FINAL_CODES[code], self._message(status, detail), retryable=False)
        kind = _STATUS_KINDS.get(status, "server_error" if status >= 500 else "bad_request")
        retryable = status in _RETRIED or status >= 500
        retry_after_s = retry_after_seconds(headers) if retryable else None
        return _AttemptFailed(kind, self._message(status, detail), retryable=retryable, retry_after_s=retry_after_s)

    def _message(self, status: int, detail: Mapping[str, object]) -> str:
        message = " ".join(str(detail.get("message") or "").split())[:_MESSAGE_CHARS]
        if self._key is not None:
            message = message.replace(self._key.get_secret_value(), "***")
        return clean(f"HTTP {status}: {message}" if message else f"HTTP {status}")

    def _completion(self, request: ChatRequest, answer: object, attempt: int, seconds: float) -> Completion:
        if isinstance(answer, dict) and answer.get("error"):  # some gateways report errors with status 200
            code = answer["error"].get("code") if isinstance(answer["error"], dict) else None
            raise self._from_status(code if isinstance(code, int) else 500, answer, {})
        try:
            return _completion(request, answer, self.spec.echoes_prefill, attempt, seconds)
        except _UNREADABLE as error:
            raise _unreadable(error) from error


def _completion(request: ChatRequest, answer: Any, echoes_prefill: bool, attempt: int, seconds: float) -> Completion:
    choice = answer["choices"][0]
    message, finish_reason = choice["message"], choice["finish_reason"]
    if finish_reason is None or finish_reason in _ABORTED:
        aborted = f"the server aborted the request (finish_reason {finish_reason})"
        raise _AttemptFailed("server_error", aborted, retryable=True)
    usage = answer.get("usage") or {}
    content = clean(message.get("content") or "")
    if echoes_prefill and request.has_prefill:
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
        "bad_response", f"the response has an unexpected format: {type(error).__name__}", retryable=True
    )


def clean(text: str) -> str:
    """Replace lone surrogates by U+FFFD: JSON can encode them, UTF-8 (and therefore Arrow) cannot."""
    return _SURROGATE.sub("\ufffd", text)


def _clean_or_none(text: str | None) -> str | None:
    return None if text is None else clean(text)


def _from_connection(error: openai.APIConnectionError, timeout_s: float) -> _AttemptFailed:
    # The transport reports a connection lost before the headers as a time-out; only the innermost cause differs.
    causes: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None:
        causes.append(cause)
        cause = cause.__cause__
    deepest = causes[-1]
    if isinstance(deepest, (aiohttp.ServerTimeoutError, TimeoutError)):
        return _AttemptFailed("timeout", f"no response within {timeout_s:g} s", retryable=True)
    return _AttemptFailed("connection", f"the connection failed ({type(deepest).__name__})", retryable=True)


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
