"""One supervised vLLM server: started, monitored, restarted up to a limit, and stopped with its owner.

The owner of a replica is this process (`LocalPlacement`) or an actor on the node where a cluster placed it; the
endpoint uses only the interface `PlacedReplica`.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from pydantic import Field

from tracefactory.core.errors import RunError
from tracefactory.core.processes import Child, kill_group
from tracefactory.core.rows import Frozen
from tracefactory.serving.vllm.log import first_error, last_message

LOOPBACK = "127.0.0.1"
_GUARD_READY_S = 120.0  # until the guard process reports that it has started vLLM; vLLM is not ready by then
if TYPE_CHECKING:
    import aiohttp

_POLL_S = 0.5
_GRACE_S = 10.0  # longer than the guard's grace period for vLLM
_MAX_PAUSE_S = 60.0
_TEXT_CHARS = 100


class ServerPlan(Frozen):
    """How to start a vLLM server on any machine.

    `python` is the interpreter of vLLM's environment, `arguments` are those of its API server without host and port,
    `model` is the name under which it serves the model; `environ` is added to the environment and may hold secrets.
    `gpus` is the number of GPUs of the server; `plugin` is one of `PLUGINS` in `plugins/plugin_dir.py`, or empty. Times
    are in seconds: `start_timeout_s` until the server must answer, `hang_s` without a sign of life until it counts as
    hung. `restarts` is how often a server that had been up is restarted.
    """

    name: str
    python: str
    arguments: tuple[str, ...]
    model: str
    environ: Mapping[str, str] = Field(default_factory=dict, repr=False)
    gpus: int = 0
    plugin: str = ""
    start_timeout_s: float = 1800.0
    hang_s: float = 180.0
    restarts: int = 5


class ReplicaState(Frozen):
    """The state of a replica: `url` (ending in /v1) while it is up, `text` for the user, `failure` once it gave up."""

    url: str | None = None
    text: str = ""
    failure: str | None = None


class PlacedReplica(Protocol):
    """A replica on any machine."""

    async def state(self) -> ReplicaState: ...

    async def stop(self) -> None:
        """Stop the server and every process it started."""
        ...


class Placement(Protocol):
    """Decides where replicas run."""

    async def place(self, plan: ServerPlan, log_file: Path) -> PlacedReplica:
        """Place a replica and begin to start its server, which answers some time later.

        Raises:
            UserError: when there is no room for it, now or later.
        """
        ...


class Replica:
    """A vLLM server on this machine. Use it from one event loop, in a thread that lives as long as the server.

    `environ` is added to that of the plan, for example to assign GPUs to this replica.
    """

    def __init__(
        self, plan: ServerPlan, log_file: Path, *, host: str = LOOPBACK, environ: Mapping[str, str] | None = None
    ) -> None:
        self.plan = plan
        self.log_file = log_file
        self.host = host
        self._environ = {**os.environ, **plan.environ, **(environ or {})}
        self._state = ReplicaState(text="starting")
        self._child: Child | None = None
        self._log_start = 0
        self._started = time.monotonic()
        self._supervision = asyncio.create_task(self._supervise())

    async def state(self) -> ReplicaState:
        """Return the current state; while the server loads, the text ends with the last message of its log.

        An unexpected error of the supervision is raised here; failures of the server are in the state.
        """
        if self._supervision.done() and not self._supervision.cancelled():
            self._supervision.result()
        if self._state.url is None and self._state.failure is None:
            seconds = time.monotonic() - self._started
            message = last_message(self.log_file, self._log_start)[:_TEXT_CHARS]
            text = f"{self._state.text}, {seconds:.0f} s: {message}".rstrip(": ")
            return self._state.model_copy(update={"text": text})
        return self._state

    async def stop(self) -> None:
        """Stop the server and every process it started."""
        self._supervision.cancel()
        await asyncio.wait([self._supervision])
        await self._stop_server()

    async def _supervise(self) -> None:
        """Start the server, and restart it up to the limit when it died or hung. The final failure is in the state."""
        died = 0
        was_up = False
        while True:
            try:
                url = await self._start()
                was_up = True
                self._state = ReplicaState(url=f"{url}/v1", text="up")
                why = await self._watch(url)
            except RunError as error:
                why = str(error)
            await self._stop_server()
            if (cause := first_error(self.log_file, self._log_start)) is not None:
                why += f" ({cause})"
            if not was_up or died == self.plan.restarts:
                times = "" if not was_up else f" and was started {died + 1} times in total"
                self._state = ReplicaState(failure=f"{self.plan.name} {why}{times}; see its log {self.log_file}")
                return
            self._started = time.monotonic()
            self._state = ReplicaState(text=f"restart {died + 1} of {self.plan.restarts}, it {why}")
            # GPU memory may be released with a delay.
            await asyncio.sleep(min(_MAX_PAUSE_S, 2.0**died - 1))
            died += 1

    async def _start(self) -> str:
        """Start the server and return its URL once it answers."""
        deadline = time.monotonic() + self.plan.start_timeout_s
        self._log_start = self.log_file.stat().st_size if self.log_file.exists() else 0
        command = [sys.executable, "-m", "tracefactory.serving.vllm.server"]
        command += ["--python", self.plan.python, "--host", self.host]
        command += ["--arguments", json.dumps(self.plan.arguments), "--plugin", self.plan.plugin]
        self._child = child = await Child.spawn(
            self.plan.name, command, self.log_file, ready_timeout_s=_GUARD_READY_S, environ=self._environ
        )
        import aiohttp  # takes 0.1 s, so it is imported only to start a server

        url = f"http://{self.host}:{child.facts['port']}"
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=10), trust_env=False) as session:
            while child.alive:
                if await _is_healthy(session, url):
                    return url
                if time.monotonic() > deadline:
                    raise RunError(f"did not answer within {self.plan.start_timeout_s:g} s")
                await asyncio.sleep(_POLL_S)
        raise RunError("exited while starting")

    async def _watch(self, url: str) -> str:
        """Wait until the server must be restarted; return the reason."""
        child = self._child
        assert child is not None
        from tracefactory.serving.vllm.health import HealthMonitor

        async with HealthMonitor(url, self.plan.model, self.plan.hang_s) as signs:
            while child.alive:
                if (problem := await signs.problem()) is not None:
                    return problem
                await asyncio.sleep(_POLL_S)
        return "died"

    async def _stop_server(self) -> None:
        """Stop what is left of the server. Its guard may have been killed before it could do so."""
        if self._child is not None:
            await self._child.stop(grace_s=_GRACE_S)
            if (group := self._child.facts.get("group")) is not None:
                kill_group(group)
            self._child = None


async def _is_healthy(session: aiohttp.ClientSession, url: str) -> bool:
    import aiohttp

    try:
        async with session.get(f"{url}/health") as response:
            return response.status == 200
    except (aiohttp.ClientError, TimeoutError):
        return False  # still loading; the caller checks the deadline and whether the process has exited
