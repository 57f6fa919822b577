"""The client for all chat models: completions over the OpenAI protocol, with retries.

Responses are read as plain JSON, so fields that the OpenAI library does not know, such as reasoning, are kept. What
follows from a failure is in `serving.failures`, how fast servers are asked in `serving.adaptive_limits`.
"""

from __future__ import annotations

import asyncio
import random
import ssl
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import httpx2
import openai
import orjson
from openai._constants import RAW_RESPONSE_HEADER
from pydantic import SecretStr

from tracefactory.core.budget import attempt_lost
from tracefactory.core.environment import Environment
from tracefactory.core.errors import Interrupted, RunStopped
from tracefactory.core.model import ChatRequest, Completion, Endpoint, ModelSpec
from tracefactory.serving.completions import UNREADABLE, clean, read_completion
from tracefactory.serving.dispatch import Dispatcher
from tracefactory.serving.failures import (
    IN_A_ROW,
    AttemptFailed,
    from_connection,
    kind_of_status,
    retry_after_seconds,
)
from tracefactory.serving.limits import error_detail, refuse_large
from tracefactory.serving.status import ModelStatus
from tracefactory.serving.streaming import read_stream

_CONNECT_S = 30.0  # to open a connection; `timeout_s` applies to the response
_MAX_BACKOFF_S = 60.0

T = TypeVar("T")


@cache
def _tls_context() -> ssl.SSLContext:
    """Return the certificates to trust, which take 20 ms to read, for all clients of this process."""
    return httpx2.create_ssl_context()


class ChatClient:
    """Requests completions from one model, with at most `spec.concurrency` requests in flight.

    The client owns its endpoint: `close` stops a managed server process. `backoff_s` is the base of the exponential
    backoff, in seconds; `has_answered` is whether the model is known to answer, in this run or in the request store.
    Use it from one event loop.
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
        self.has_answered = False
        self._endpoint = endpoint
        self._log_dir = log_dir
        self._key = api_key
        self._backoff_s = backoff_s
        self._slots = asyncio.Semaphore(spec.concurrency)
        self._clients: dict[bool, openai.AsyncOpenAI] = {}  # by whether proxies of the environment are used
        self._dispatcher = Dispatcher(spec.model, spec.concurrency, spec.max_pause_s)
        self._refused_in_a_row = 0

    @classmethod
    def connect(cls, spec: ModelSpec, log_dir: Path, environment: Environment | None = None) -> ChatClient:
        """Return a client for `spec`, with the API key and URLs of the environment. Servers start at the first request.

        Raises:
            UserError: for an unset environment variable or missing weights.
        """
        environment = environment or Environment()
        return cls(spec, spec.endpoint(environment), log_dir, spec.secret(environment))

    async def complete(self, request: ChatRequest) -> Completion:
        """Return the completion of `request`, with retries.

        Raises:
            RequestFailed: when no attempt is left, or at once when a retry cannot help.
            RunStopped: when the run cannot go on: no credit, refusals in a row, servers silent for `max_pause_s`.
            RunError: when a managed server process cannot be kept running.
            Interrupted: when the run is being drained.
        """
        body, streams = self.spec.body(request), self.spec.streams(request)
        return await self._send(
            lambda url: url + self.spec.wire.path, body, partial(self._completion, request), streams=streams
        )

    async def answer(self, request: ChatRequest) -> tuple[Completion, Any]:
        """Return the completion of `request`, and the JSON that it was read from, in the format of OpenAI's protocol.

        Raises:
            RequestFailed, RunError, Interrupted: as `complete` does.
        """

        def read(answer: object, attempt: int, seconds: float) -> tuple[Completion, Any]:
            return self._completion(request, answer, attempt, seconds), self.spec.wire.answer(answer)

        return await self._send(lambda url: url + self.spec.wire.path, self.spec.body(request), read)

    async def ask(self, path: str, body: Mapping[str, Any] | None, read: Callable[[Any], T], *, near: str = "") -> T:
        """Return `read` of the JSON response of another endpoint of the same servers, with the retries of `complete`.

        `path` starts at the server's root; without a `body` the request is a GET. Requests with the same `near` go to
        the same server while it is up, because it has cached their common prefix. An error of `read` counts as a
        failure of the server.

        Raises:
            RequestFailed, RunError, Interrupted: as `complete` does.
        """
        return await self._send(
            lambda url: url.removesuffix("/v1") + path, body, lambda answer, attempt, seconds: read(answer), near
        )

    async def _send(
        self,
        address: Callable[[str], str],
        body: Mapping[str, Any] | None,
        read: Callable[[object, int, float], T],
        near: str = "",
        *,
        streams: bool = False,
    ) -> T:
        async with self._slots:
            attempt, tries = 1, Counter[str]()
            first_s = time.monotonic()
            while True:
                url = await self._dispatcher.turn(await self._endpoint.start(self._log_dir), near)
                sent_at = time.monotonic()
                try:
                    answer = await (
                        self._stream(url, body or {}) if streams else self._attempt(url, address(url), body)
                    )
                    try:
                        result = read(answer, attempt, time.monotonic() - sent_at)
                    except UNREADABLE as error:
                        message = f"the response has an unexpected format: {type(error).__name__}"
                        raise AttemptFailed("bad_response", message) from error
                except AttemptFailed as failed:
                    try:
                        self._note_failure(url, sent_at, tries, failed)
                    except RunStopped as stopped:
                        self._dispatcher.stop(stopped)
                        raise
                    if failed.kind.retries != "free":
                        tries[failed.kind.retries] += not self._dispatcher.is_paused(url)
                    if failed.may_be_billed:
                        await attempt_lost()
                    if self._has_no_try_left(tries, failed, time.monotonic() - first_s):
                        raise failed.failed(attempt, others_answered=self.has_answered) from None
                    # Full jitter: clients that failed at the same time do not retry at the same time.
                    longest_s = min(_MAX_BACKOFF_S, self._backoff_s * 2.0 ** (tries.total() - 1))
                    delay_s = 0.0 if failed.kind.retries == "free" else random.uniform(0, longest_s)
                else:
                    self.has_answered, self._refused_in_a_row = True, 0
                    self._dispatcher.answered(url)
                    return result
                finally:
                    self._dispatcher.end(url)
                await self._dispatcher.sleep(delay_s)
                attempt += 1

    def _note_failure(self, url: str, sent_at: float, request: object, failed: AttemptFailed) -> None:
        """Adapt the limits to a failure, and stop the run where asking on makes no sense.

        Raises:
            RunStopped: without credit, after `IN_A_ROW` refusals, or when the servers are silent for too long.
        """
        if failed.kind.retries != "no":
            self._dispatcher.failed(url, sent_at, id(request), failed)
            return
        self._dispatcher.answered(url)  # the server works
        self._refused_in_a_row += failed.kind.stops == "in_a_row"
        what = f"{self.spec.model}: {failed.message}; {failed.kind.remedy}, then run the same command: "
        if failed.kind.stops == "at_once":
            raise RunStopped(f"{what}what was paid for is stored, and every request without an answer is still owed")
        if failed.kind.stops == "in_a_row" and self._refused_in_a_row >= IN_A_ROW:
            refused = f"{what}it refused {IN_A_ROW} requests in a row"
            raise RunStopped(f"{refused} after answering others" if self.has_answered else refused)

    def _has_no_try_left(self, tries: Counter[str], failed: AttemptFailed, seconds: float) -> bool:
        match failed.kind.retries:
            case "no":
                return True
            case "once":
                return tries["once"] > min(1, self.spec.retries)
            case "counted":
                return tries["counted"] > self.spec.retries
        return seconds > self.spec.max_pause_s  # the server answers others, and refuses this one for its size, say

    def drain(self) -> None:
        """Send no further requests; those that wait for their turn or another try raise `Interrupted`."""
        self._dispatcher.stop(Interrupted())

    @property
    def gpus(self) -> int:
        """The GPUs that its own servers hold now."""
        return self._endpoint.gpus

    @property
    def status(self) -> ModelStatus:
        """The state of the model's servers, with a sentence when the user should know something."""
        return ModelStatus(self._endpoint.notice or self._dispatcher.notice, self._dispatcher.endpoints())

    async def close(self) -> None:
        """Close the connections and stop a managed server process."""
        for client in self._clients.values():
            await client.close()
        self._clients.clear()
        await self._endpoint.stop()

    async def _attempt(self, url: str, address: str, body: Mapping[str, Any] | None) -> object:
        client = self._client(url)
        with self._failures():
            if body is None:
                return await client.get(address, cast_to=object)
            named = self.spec.wire.headers("" if self._key is None else self._key.get_secret_value())
            headers = {name: openai.omit if value is None else value for name, value in named.items()}
            return await client.post(address, cast_to=object, body=body, options={"headers": headers})

    async def _stream(self, url: str, body: Mapping[str, Any] | None) -> object:
        """Return the answer to a chat request that is streamed, unless the server does not stream.

        It may take any time while tokens come: `timeout_s` until the first one, `stall_s` between two.
        """
        first_s, loop = self.spec.timeout_s, asyncio.get_running_loop()
        with self._failures():
            async with asyncio.timeout(first_s) as deadline:
                response: Any = await self._client(url).post(
                    f"{url}/chat/completions",
                    cast_to=object,
                    body={**(body or {}), "stream": True, "stream_options": {"include_usage": True}},
                    options={
                        "headers": {RAW_RESPONSE_HEADER: "stream"},
                        "timeout": openai.Timeout(first_s, connect=min(_CONNECT_S, first_s)),
                    },
                    stream=True,
                    stream_cls=openai.AsyncStream[object],
                )
                try:
                    if "text/event-stream" not in response.headers.get("content-type", ""):
                        return orjson.loads(await response.read())
                    chunks = response.iter_bytes()
                    return await read_stream(chunks, lambda: deadline.reschedule(loop.time() + self.spec.stall_s))
                finally:
                    await response.close()

    @contextmanager
    def _failures(self) -> Iterator[None]:
        """Raise `AttemptFailed` for what the transport raises."""
        try:
            yield
        except openai.APIStatusError as error:
            raise self._from_status(error.status_code, error.body, error.response.headers) from error
        except openai.APIConnectionError as error:
            if isinstance(error.__cause__, AttemptFailed):  # the library wraps what was raised while it read
                raise error.__cause__ from None
            raise from_connection(error, self.spec.timeout_s) from error
        except UnicodeEncodeError as error:
            raise AttemptFailed("bad_request", "the messages contain text that is not UTF-8") from error
        except RecursionError as error:
            raise AttemptFailed("bad_response", "the JSON of the response is nested too deeply") from error
        except ValueError as error:  # of the JSON library
            raise AttemptFailed("bad_response", "the response is not JSON") from error
        except TimeoutError as error:
            raise AttemptFailed("timeout", f"no token within {self.spec.stall_s:g} s") from error
        except (OSError, httpx2.TransportError) as error:
            raise AttemptFailed("connection", f"the connection was lost ({type(error).__name__})") from error

    def _client(self, url: str) -> openai.AsyncOpenAI:
        uses_proxies = urlsplit(url).hostname not in {"127.0.0.1", "localhost", "::1"}
        client = self._clients.get(uses_proxies)
        if client is None:
            client = self._clients[uses_proxies] = openai.AsyncOpenAI(
                base_url=url,  # of no effect: requests name the whole address
                # Do not fall back to OPENAI_API_KEY, which must not be sent to other servers.
                api_key=self._key.get_secret_value() if self._key is not None else "none",
                max_retries=0,
                timeout=openai.Timeout(self.spec.timeout_s, connect=min(_CONNECT_S, self.spec.timeout_s)),
                http_client=openai.DefaultAioHttpClient(
                    trust_env=uses_proxies,
                    verify=_tls_context(),
                    event_hooks={"response": [refuse_large]},
                    # 0 is no limit to aiohttp, None is 100: the dispatcher limits what is in flight.
                    limits=httpx2.Limits(max_connections=0),
                ),
            )
        return client

    def _from_status(self, status: int, body: object, headers: Mapping[str, str]) -> AttemptFailed:
        detail, message = error_detail(body, "" if self._key is None else self._key.get_secret_value())
        shown = clean(f"HTTP {status}: {message}" if message else f"HTTP {status}")
        return AttemptFailed(kind_of_status(status, detail), shown, retry_after_s=retry_after_seconds(headers))

    def _completion(self, request: ChatRequest, answer: object, attempt: int, seconds: float) -> Completion:
        if isinstance(answer, dict) and answer.get("error"):  # some gateways report errors with status 200
            code = answer["error"].get("code") if isinstance(answer["error"], dict) else None
            raise self._from_status(code if type(code) is int and 400 <= code < 600 else 500, answer, {})
        return read_completion(request, self.spec.wire.answer(answer), self.spec.echoes_prefill, attempt, seconds)
