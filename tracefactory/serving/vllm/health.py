"""Detect vLLM servers that hang, and distinguish them from busy ones.

GET /health reports only whether the engine has died. An engine that hangs (a stuck collective, a stopped process) still
answers it. A server counts as alive when the token counters or the cache use in GET /metrics change, or when it answers
a request for one token. A busy server may delay that request, but its counters change; an idle one answers at once.
"""

from __future__ import annotations

import asyncio
import re
import time
from types import TracebackType

import aiohttp

HEALTH_EVERY_S = 2.0
_REQUEST_TIMEOUT_S = 10.0
_COUNTERS = re.compile(
    r"^vllm:(?:prompt_tokens_total|generation_tokens_total|kv_cache_usage_perc)\{[^\n]*\} (\S+)$", re.MULTILINE
)


class HealthMonitor:
    """Monitors one server that has been up. An async context manager; `problem` may be called at any rate."""

    def __init__(self, url: str, model: str, hang_s: float) -> None:
        self._url = url
        self._model = model
        self._hang_s = hang_s
        self._counters: tuple[str, ...] = ()
        self._last_alive = self._last_query = time.monotonic()
        self._probe: asyncio.Task[bool] | None = None

    async def __aenter__(self) -> HealthMonitor:
        self._session = aiohttp.ClientSession(trust_env=False)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._probe is not None:
            self._probe.cancel()
            await asyncio.wait([self._probe])
        await self._session.close()

    async def problem(self) -> str | None:
        """Return why the server must be restarted, or None while it is alive. Queries it every few seconds."""
        now = time.monotonic()
        if now - self._last_query < min(HEALTH_EVERY_S, self._hang_s / 4):
            return None
        self._last_query = now
        status, _ = await self._get("/health")
        if status is not None and status >= 500:
            return f"reported that its engine died (/health: {status})"
        _, metrics = await self._get("/metrics")
        counters = tuple(_COUNTERS.findall(metrics))
        if counters and counters != self._counters:
            self._counters, self._last_alive = counters, time.monotonic()
        self._update_probe()
        silent_s = time.monotonic() - self._last_alive
        return f"hung: no sign of life for {silent_s:.0f} s" if silent_s > self._hang_s else None

    def _update_probe(self) -> None:
        """Record the result of a finished probe; send one after a quarter of `hang_s` without a sign of life."""
        if self._probe is not None and self._probe.done():
            if self._probe.result():
                self._last_alive = time.monotonic()
            self._probe = None
        if self._probe is None and time.monotonic() - self._last_alive > self._hang_s / 4:
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
        timeout = aiohttp.ClientTimeout(total=min(_REQUEST_TIMEOUT_S, self._hang_s))
        try:
            async with self._session.get(self._url + path, timeout=timeout) as response:
                return response.status, await response.text()
        except (aiohttp.ClientError, TimeoutError):
            return None, ""  # no answer counts toward a hang
