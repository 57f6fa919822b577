"""One vLLM server that is kept up: started, watched, restarted with a limit, ended with its owner.

The owner of a replica is this process (`LocalPlacement`) or an actor on the node where a cluster placed it; the
endpoint in front sees only `PlacedReplica`.
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
from tracefactory.serving.vllm.log import first_error, last_words

LOOPBACK = "127.0.0.1"
_GUARD_READY_S = 120.0  # for the guard process to say that it has started vLLM, not for vLLM to be ready
if TYPE_CHECKING:
    import aiohttp

_POLL_S = 0.5
_GRACE_S = 10.0  # more than the guard gives vLLM
_PAUSE_CAP_S = 60.0
_TEXT_CHARS = 100


class ServerPlan(Frozen):
    """How to start a vLLM server, wherever that is.

    `python` is the interpreter of vLLM's environment, `arguments` those of its API server less host and port, `model`
    the name it serves the model under; `environ` is added to the environment and may hold secrets. `gpus` is how many
    GPUs the server gets; `plugin` names one of `decoders.vllm_site` to run in it. Times are seconds: `start_timeout_s`
    until it must answer, `hang_s` without any sign of life until it counts as hung. `restarts` is how often a server
    that had been up is started again.
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
    """What a replica is at: `url` (ending in /v1) while it answers, `text` for a person, `gone` its last word."""

    url: str | None = None
    text: str = ""
    gone: str | None = None


class PlacedReplica(Protocol):
    """A replica somewhere."""

    async def state(self) -> ReplicaState: ...

    async def stop(self) -> None:
        """End the server and everything it started."""
        ...


class Placement(Protocol):
    """Decides where replicas run."""

    async def place(self, plan: ServerPlan, log_file: Path) -> PlacedReplica:
        """Start a replica; it is placed when this returns, and its server answers some time later.

        Raises:
            UserError: when there is no room for it and never will be.
        """
        ...


class Replica:
    """A vLLM server on this machine. Use from one event loop, in a thread that lives as long as the server.

    `environ` is added to the plan's, e.g. with the GPUs that are this replica's.
    """

    def __init__(
        self, plan: ServerPlan, log_file: Path, *, host: str = LOOPBACK, environ: Mapping[str, str] | None = None
    ) -> None:
        self.plan = plan
        self.log_file = log_file
        self.host = host
        self._environ = {**os.environ, **plan.environ, **(environ or {})}
        self._state = ReplicaState(text="starts")
        self._child: Child | None = None
        self._log_start = 0
        self._started = time.monotonic()
        self._keeping = asyncio.create_task(self._keep())

    async def state(self) -> ReplicaState:
        """Return what the replica is at; while it loads, with what its log says last.

        Raises whatever broke the keeping of the replica besides the server's own failures.
        """
        if self._keeping.done() and not self._keeping.cancelled():
            self._keeping.result()
        if self._state.url is None and self._state.gone is None:
            seconds = time.monotonic() - self._started
            said = last_words(self.log_file, self._log_start)[:_TEXT_CHARS]
            return self._state.model_copy(update={"text": f"{self._state.text}, {seconds:.0f} s: {said}".rstrip(": ")})
        return self._state

    async def stop(self) -> None:
        """End the server and everything it started."""
        self._keeping.cancel()
        await asyncio.wait([self._keeping])
        await self._bury()

    async def _keep(self) -> None:
        """Start the server, and again when it died or hung, until the limit. The last word goes into the state."""
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
            await self._bury()
            if (cause := first_error(self.log_file, self._log_start)) is not None:
                why += f" ({cause})"
            if not was_up or died == self.plan.restarts:
                times = "" if not was_up else f" and was started {died + 1} times in all"
                self._state = ReplicaState(gone=f"{self.plan.name} {why}{times}; its log is {self.log_file}")
                return
            self._started = time.monotonic()
            self._state = ReplicaState(text=f"restart {died + 1} of {self.plan.restarts}, it {why}")
            # What took the memory may need a moment to give it back.
            await asyncio.sleep(min(_PAUSE_CAP_S, 2.0**died - 1))
            died += 1

    async def _start(self) -> str:
        """Start the server and return its address once it answers."""
        deadline = time.monotonic() + self.plan.start_timeout_s
        self._log_start = self.log_file.stat().st_size if self.log_file.exists() else 0
        command = [sys.executable, "-m", "tracefactory.serving.vllm.server"]
        command += ["--python", self.plan.python, "--host", self.host]
        command += ["--arguments", json.dumps(self.plan.arguments), "--plugin", self.plan.plugin]
        self._child = child = await Child.spawn(
            self.plan.name, command, self.log_file, ready_timeout_s=_GUARD_READY_S, environ=self._environ
        )
        import aiohttp  # a tenth of a second: not for models that are only looked up

        url = f"http://{self.host}:{child.facts['port']}"
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=10), trust_env=False) as session:
            while child.alive:
                if await _is_healthy(session, url):
                    return url
                if time.monotonic() > deadline:
                    raise RunError(f"did not answer within {self.plan.start_timeout_s:g} s")
                await asyncio.sleep(_POLL_S)
        raise RunError("ended while starting")

    async def _watch(self, url: str) -> str:
        """Return, once the server is no good any more, why."""
        child = self._child
        assert child is not None
        from tracefactory.serving.vllm.health import SignsOfLife

        async with SignsOfLife(url, self.plan.model, self.plan.hang_s) as signs:
            while child.alive:
                if (trouble := await signs.trouble()) is not None:
                    return trouble
                await asyncio.sleep(_POLL_S)
        return "died"

    async def _bury(self) -> None:
        """End what is left of the server; its guard may have been killed before it could."""
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
        return False  # it is still loading; the deadline and the process's end are seen elsewhere
