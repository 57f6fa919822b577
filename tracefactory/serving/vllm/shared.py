"""Servers that `tracefactory serve` runs for several runs, registered in `servers/<identity>.json` of the state folder.

The file names the owner process and the URLs of its servers. It is checked before use: the owner must be alive (by its
process id on the same host, by its heartbeat elsewhere), and each URL must serve a model name with the digest of the
model's identity, as managed servers do. A file that a killed process left behind, or another server on the same port,
therefore receives no requests. The heartbeat of another host is watched by this host's own clock (`store.heartbeats`),
so that its owner is taken to be dead `STALE_S` seconds after the first look at the earliest.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from contextlib import suppress
from pathlib import Path

import aiohttp
import psutil

from tracefactory.core.errors import UserError
from tracefactory.core.files import read_json, write_json
from tracefactory.core.rows import Frozen
from tracefactory.store.heartbeats import Heartbeats
from tracefactory.store.leases import STALE_S

_CHECK_EVERY_S = 5.0
_LOOK_S = 0.5
_REQUEST_TIMEOUT_S = 5.0
_HEARTBEATS = Heartbeats()  # of the owners on other hosts, for all lookups of this process


class SharedServers(Frozen):
    """The registration of servers for a model of this identity. `started` is Unix time."""

    model: str
    identity: str
    pid: int
    host: str
    urls: tuple[str, ...] = ()
    started: float


def identity_label(identity: str) -> str:
    """Return the second model name of a managed server, made from the digest of the model's identity."""
    return f"tracefactory-{identity[:16]}"


def announce(folder: Path, servers: SharedServers) -> None:
    """Register servers, or update their URLs.

    Where a process of another host has registered some, this waits until it shows a sign of life or has shown none for
    `STALE_S` seconds.

    Raises:
        UserError: when another live process has registered servers of this identity.
    """
    path, owner, silent_s = _path(folder, servers.identity), (servers.pid, servers.host), 0.0
    while (found := _registered(folder, servers.identity)) is not None and (found.pid, found.host) != owner:
        with suppress(FileNotFoundError):  # withdrawn since it was read
            before, silent_s = silent_s, _HEARTBEATS.silent_s(path)
            if found.host == servers.host or silent_s < before:
                where = ", ".join(found.urls) or "no server of it answers yet"
                raise UserError(f"{servers.model} is already served by process {found.pid} on {found.host}: {where}")
        time.sleep(_LOOK_S)
    write_json(path, servers.model_dump(mode="json"))


def heartbeat(folder: Path, identity: str) -> None:
    """Record that the owner is alive; call it at least every `HEARTBEAT_S` seconds."""
    os.utime(_path(folder, identity))


def withdraw(folder: Path, identity: str) -> None:
    """Remove the registration."""
    _path(folder, identity).unlink(missing_ok=True)


def is_registered(folder: Path, identity: str) -> bool:
    """Tell whether a live process has registered servers of this identity, ready or not."""
    return _registered(folder, identity) is not None


class SharedLookup:
    """Finds shared servers of one identity. May be called for every request."""

    def __init__(self, folder: Path, identity: str) -> None:
        self._folder = folder
        self._identity = identity
        self._urls: list[str] | None = None
        self._checked = float("-inf")
        self._lock = asyncio.Lock()

    async def urls(self) -> list[str] | None:
        """Return the URLs that answer now, None when no servers are registered for the model."""
        async with self._lock:
            if not self._urls or time.monotonic() - self._checked > _CHECK_EVERY_S:
                self._urls = await self._look()
                self._checked = time.monotonic()
            return self._urls

    async def _look(self) -> list[str] | None:
        servers = _registered(self._folder, self._identity)
        if servers is None:
            return None
        serving = await asyncio.gather(*(_serves(url, identity_label(self._identity)) for url in servers.urls))
        return [url for url, up in zip(servers.urls, serving, strict=True) if up]


def _path(folder: Path, identity: str) -> Path:
    return folder / f"{identity[:16]}.json"


def _registered(folder: Path, identity: str) -> SharedServers | None:
    """Return the registration of a live owner, None when there is none."""
    path = _path(folder, identity)
    content = read_json(path)
    if content is None:
        return None
    servers = SharedServers.model_validate(content)
    if servers.host == socket.gethostname():
        return servers if psutil.pid_exists(servers.pid) else None
    try:
        return servers if _HEARTBEATS.silent_s(path) < STALE_S else None
    except FileNotFoundError:
        return None  # withdrawn since it was read


async def _serves(url: str, label: str) -> bool:
    try:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=_REQUEST_TIMEOUT_S), trust_env=False) as session,
            session.get(f"{url}/models") as response,
        ):
            listed = await response.json()
            return any(model["id"] == label for model in listed["data"])
    except (aiohttp.ClientError, TimeoutError, ValueError, KeyError, TypeError):
        return False  # no server, or another one
