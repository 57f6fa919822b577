"""Telling a busy vLLM server from one that hangs.

GET /health says only whether the engine has died. An engine that hangs (a stuck collective, a stopped process) still
answers it, so three signs count: the token counters and cache use of GET /metrics move; or a request for one token is
answered. A busy server may let that request wait, but then its counters move; an idle one answers it at once.
"""

from __future__ import annotations

import asyncio
import re
import time
from types import TracebackType

import aiohttp

HEALTH_EVERY_S = 2.0
_ANSWER_S = 10.0
_MOVING = re.compile(
    r"^vllm:(?:prompt_tokens_total|generation_tokens_total|kv_cache_usage_perc)\{[^\n]*\} (\S+)$", re.MULTILINE
)


class SignsOfLife:
    """Watches one server that has been up. An async context manager; `trouble` may be called at any rate."""

    def __init__(self, url: str, model: str, hang_s: float) -> None:
        self._url = url
        self._model = model
        self._hang_s = hang_s
        self._seen: tuple[str, ...] = ()
        self._alive_at = self._looked_at = time.monotonic()
        self._probe: asyncio.Task[bool] | None = None

    async def __aenter__(self) -> SignsOfLife:
        self._session = aiohttp.ClientSession(trust_env=False)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._probe is not None:
            self._probe.cancel()
            await asyncio.wait([self._probe])
        await self._session.close()

    async def trouble(self) -> str | None:
        """Return why the server is no good any more, or None while it is. Looks at it every few seconds."""
        now = time.monotonic()
        if now - self._looked_at < min(HEALTH_EVERY_S, self._hang_s / 4):
            return None
        self._looked_at = now
        status, _ = await self._get("/health")
        if status is not None and status >= 500:
            return f"reports that its engine died (/health: {status})"
        _, metrics = await self._get("/metrics")
        moving = tuple(_MOVING.findall(metrics))
        if moving and moving != self._seen:
            self._seen, self._alive_at = moving, time.monotonic()
        self._see_probe()
        silent_s = time.monotonic() - self._alive_at
        return f"hangs: no sign of life for {silent_s:.0f} s" if silent_s > self._hang_s else None

    def _see_probe(self) -> None:
        """Note an answered probe; send one after a quarter of the patience without a sign."""
        if self._probe is not None and self._probe.done():
            if self._probe.result():
                self._alive_at = time.monotonic()
            self._probe = None
        if self._probe is None and time.monotonic() - self._alive_at > self._hang_s / 4:
            self._probe = asyncio.create_task(self._one_token())

    async def _one_token(self) -> bool:
        body = {"model": self._model, "prompt": [0], "max_tokens": 1}
        timeout = aiohttp.ClientTimeout(total=self._hang_s)
        try:
            async with self._session.post(f"{self._url}/v1/completions", json=body, timeout=timeout) as response:
                await response.read()
                return response.status == 200
        except (aiohttp.ClientError, TimeoutError):
            return False

    async def _get(self, path: str) -> tuple[int | None, str]:
        timeout = aiohttp.ClientTimeout(total=min(_ANSWER_S, self._hang_s))
        try:
            async with self._session.get(self._url + path, timeout=timeout) as response:
                return response.status, await response.text()
        except (aiohttp.ClientError, TimeoutError):
            return None, ""  # silence; it adds up to a hang
