"""Model endpoints: fixed URLs, and a managed server process that is restarted when it dies."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from tracefactory.core.errors import RunError
from tracefactory.core.processes import PASSIVE_THREADS, Child


class FixedEndpoint:
    """Servers that are not managed by this package, so that their state is unknown."""

    gpus = 0
    notice = ""

    def __init__(self, base_urls: Sequence[str]) -> None:
        self.base_urls = [url.rstrip("/") for url in base_urls]

    async def start(self, log_dir: Path) -> list[str]:
        """Return the URLs; there is nothing to start."""
        return list(self.base_urls)

    async def stop(self) -> None:
        """Do nothing: the servers are not managed here."""


class ManagedEndpoint:
    """One managed server process, `python -m module`, that serves the OpenAI protocol on a free loopback port.

    The options become `--name value` arguments. The process ends with this one. A server that died is restarted by the
    next `start`, at most `restarts` times in total.
    """

    gpus = 0  # only vLLM servers of ours hold GPUs

    def __init__(
        self,
        name: str,
        module: str,
        options: Mapping[str, str | int | float],
        *,
        ready_timeout_s: float = 300.0,
        restarts: int = 5,
    ) -> None:
        self.name = name
        self._argv = [sys.executable, "-m", module]
        for option, value in options.items():
            self._argv += [f"--{option}", str(value)]
        self._ready_timeout_s = ready_timeout_s
        self._restarts, self._deaths = restarts, 0
        self._lock = asyncio.Lock()
        self._child: Child | None = None
        self._failed: RunError | None = None
        self._starting = False

    @property
    def pid(self) -> int | None:
        """The process id of the running server, or None."""
        return self._child.pid if self._child is not None and self._child.alive else None

    async def start(self, log_dir: Path) -> list[str]:
        """Return the base URL of the running server, starting or restarting it.

        Raises:
            RunError: when it does not start or has died too often.
        """
        async with self._lock:
            if self._failed is not None:  # an earlier call failed; do not try again
                raise self._failed
            try:
                if self._child is not None and not self._child.alive:
                    await self._discard(self._child)
                if self._child is None:
                    self._starting = True
                    self._child = await self._spawn(log_dir)
            except RunError as error:
                self._failed = error
                raise
            finally:
                self._starting = False
            return [f"http://127.0.0.1:{self._child.facts['port']}/v1"]

    @property
    def notice(self) -> str:
        """A message while the server starts or restarts, else empty."""
        if not self._starting:
            return ""
        again = f": it died, restart {self._deaths} of {self._restarts}" if self._deaths else ""
        return f"{self.name} is starting{again}"

    async def stop(self) -> None:
        """Stop the server process, if it is running."""
        async with self._lock:
            if self._child is not None:
                await self._child.stop()
                self._child = None

    async def _discard(self, child: Child) -> None:
        await child.stop()
        self._child = None
        if self._deaths == self._restarts:
            raise RunError(f"{self.name} died too often; last lines of {child.log_file}:\n{child.log_tail()}")
        self._deaths += 1

    async def _spawn(self, log_dir: Path) -> Child:
        # Servers of one model with different options have separate logs.
        suffix = hashlib.sha256(json.dumps(self._argv).encode()).hexdigest()[:8]
        log_file = log_dir / f"{self.name.replace('/', '-')}-{suffix}.log"
        deadline = time.monotonic() + self._ready_timeout_s
        environ = {**PASSIVE_THREADS, **os.environ}
        child = await Child.spawn(
            self.name, self._argv, log_file, ready_timeout_s=self._ready_timeout_s, environ=environ
        )
        try:
            await self._await_health(child, deadline)
        except BaseException:
            await child.stop(grace_s=0)
            raise
        return child

    async def _await_health(self, child: Child, deadline: float) -> None:
        import aiohttp  # takes 0.1 s, so it is imported only to start a server

        url = f"http://127.0.0.1:{child.facts['port']}/health"
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=10)) as session:
            while child.alive:
                try:
                    async with session.get(url) as response:
                        if response.status == 200:
                            return
                        result = f"answered {response.status}"
                except (aiohttp.ClientError, TimeoutError) as error:
                    result = f"did not answer: {type(error).__name__}"
                if time.monotonic() > deadline:
                    raise RunError(f"{self.name} is not healthy: /health {result}; see its log {child.log_file}")
                await asyncio.sleep(0.1)
        raise RunError(f"{self.name} exited while starting; last lines of {child.log_file}:\n{child.log_tail()}")
