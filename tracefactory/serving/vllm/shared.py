"""Servers that `tracefactory serve` keeps for several runs: `servers/<identity>.json` in the state folder.

The file names the process that keeps them and their addresses. It is believed only as far as it can be checked: its
keeper must live (process id on the same host, heartbeat elsewhere), and each address must answer under a name that
holds the model's identity, which managed servers have; so neither a file that a killed process left behind, nor a
stranger on the same port, draws a request.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from pathlib import Path

import aiohttp
import psutil

from tracefactory.core.errors import UserError
from tracefactory.core.files import read_json, write_json
from tracefactory.core.rows import Frozen
from tracefactory.store.leases import STALE_S

_BELIEVED_S = 5.0  # how long an answer is taken for still true
_ANSWER_S = 5.0


class SharedServers(Frozen):
    """Who keeps servers for a model of this identity, and where they are. `started` is Unix time."""

    model: str
    identity: str
    pid: int
    host: str
    urls: tuple[str, ...] = ()
    started: float


def identity_label(identity: str) -> str:
    """Return the second name that a managed server answers to, from the digest of the model's identity."""
    return f"tracefactory-{identity[:16]}"


def announce(folder: Path, servers: SharedServers) -> None:
    """Say where the servers are, or that they have moved.

    Raises:
        UserError: when another living process already keeps servers of this identity.
    """
    found = _kept(folder, servers.identity)
    if found is not None and (found.pid, found.host) != (servers.pid, servers.host):
        raise UserError(
            f"{servers.model} is already served by process {found.pid} on {found.host}: {', '.join(found.urls)}"
        )
    write_json(_path(folder, servers.identity), servers.model_dump(mode="json"))


def beat(folder: Path, identity: str) -> None:
    """Say that the keeper still lives; at least every `HEARTBEAT_S` seconds."""
    os.utime(_path(folder, identity))


def withdraw(folder: Path, identity: str) -> None:
    """Take back what was announced."""
    _path(folder, identity).unlink(missing_ok=True)


class SharedLookup:
    """Finds shared servers of one identity that answer now. May be asked for every request."""

    def __init__(self, folder: Path, identity: str) -> None:
        self._folder = folder
        self._identity = identity
        self._urls: list[str] | None = None
        self._checked = float("-inf")
        self._lock = asyncio.Lock()

    async def urls(self) -> list[str] | None:
        """Return the addresses that answer now; None when nobody keeps servers for the model."""
        async with self._lock:
            if not self._urls or time.monotonic() - self._checked > _BELIEVED_S:
                self._urls = await self._look()
                self._checked = time.monotonic()
            return self._urls

    async def _look(self) -> list[str] | None:
        servers = _kept(self._folder, self._identity)
        if servers is None:
            return None
        answers = await asyncio.gather(*(_answers_to(url, identity_label(self._identity)) for url in servers.urls))
        return [url for url, right in zip(servers.urls, answers, strict=True) if right]


def _path(folder: Path, identity: str) -> Path:
    return folder / f"{identity[:16]}.json"


def _kept(folder: Path, identity: str) -> SharedServers | None:
    """Return who keeps servers of this identity, None when nobody does any more."""
    path = _path(folder, identity)
    content = read_json(path)
    if content is None:
        return None
    servers = SharedServers.model_validate(content)
    if servers.host == socket.gethostname():
        return servers if psutil.pid_exists(servers.pid) else None
    try:
        return servers if time.time() - path.stat().st_mtime < STALE_S else None
    except FileNotFoundError:
        return None  # withdrawn since it was read


async def _answers_to(url: str, label: str) -> bool:
    try:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=_ANSWER_S), trust_env=False) as session,
            session.get(f"{url}/models") as response,
        ):
            listed = await response.json()
            return any(model["id"] == label for model in listed["data"])
    except (aiohttp.ClientError, TimeoutError, ValueError, KeyError, TypeError):
        return False  # nobody there, or somebody else
