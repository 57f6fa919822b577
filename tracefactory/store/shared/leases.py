"""Leases in a shared state: the right of one run to write a stage or to spend from a ledger, which expires.

A lease is an object that its owner replaces every `RENEW_S` seconds, always on the condition that it is as it was.
When it has not been for `EXPIRES_S` seconds by the clock of the store, another run may replace it; of several that try,
one succeeds. The clocks of the machines are not looked at.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from types import TracebackType
from typing import Any, NamedTuple, TypeVar
from uuid import uuid4

from tracefactory.core.errors import Interrupted, RunError
from tracefactory.store.shared.objects import Head, Objects, Unreachable

EXPIRES_S = 60.0
RENEW_S = 15.0
POLL_S = 3.0
"""Time between two looks at a lease of another run."""
_ATTEMPTS = 5
FREE = b"{}"
"""The content of a lease that was given back."""
_THREADS = ThreadPoolExecutor(4, thread_name_prefix="leases")
_Answer = TypeVar("_Answer")


class _Held(NamedTuple):
    """A lease of another run."""

    who: str
    for_s: float


class SharedLease:
    """One lease; an asynchronous context manager that waits for the lease of another run.

    Args:
        objects: the shared state.
        name: what is leased.
        run: the run.
        notify: is told once who is waited for.
        lost: is told when the lease was lost while it was held. The run must then stop writing.
        waits: whether to wait for another run that lives; otherwise its lease is a RunError.

    Raises:
        RunError: when the lease was lost while it was held, or is held by another run and is not waited for.
        Unreachable: when the shared state cannot be asked.
    """

    def __init__(
        self,
        objects: Objects,
        name: str,
        run: str,
        notify: Callable[[str], None],
        lost: Callable[[str], None],
        *,
        waits: bool = True,
    ) -> None:
        self.objects, self.run, self.notify, self.waits = objects, run, notify, waits
        self.name = f"leases/{name}.json"
        self._lost = lost
        self._why_lost = ""
        self._etag = ""
        self._own = b""  # as it was written last
        self._renewing: asyncio.Task[None] | None = None

    async def __aenter__(self) -> SharedLease:
        notified, began = False, time.monotonic()
        while (held := await _in_thread(self._try)) is not None:
            text = f"{self.name}: waiting for {held.who}, until it ends or shows no sign of life for {EXPIRES_S:g} s"
            if not self.waits and time.monotonic() - began > EXPIRES_S + POLL_S:  # it lives: it would have expired
                raise RunError(
                    f"{held.who} spends from the same ledger, whose caps hold for one run at a time; run the same "
                    f"command when it has ended ({self.objects.url}/{self.name})"
                )
            if not notified:
                self.notify(text)
                notified = True
            await asyncio.sleep(min(POLL_S, max(0.05, held.for_s)))
        self._renewing = asyncio.create_task(self._renew())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._renewing is not None:
            self._renewing.cancel()
            await asyncio.gather(self._renewing, return_exceptions=True)
        if self._why_lost:
            if error is None or isinstance(error, Interrupted):  # the run was stopped because of it
                raise RunError(self._why_lost) from error
            return
        try:
            await _in_thread(self.objects.replace, self.name, FREE, self._etag)
        except Unreachable:
            return  # it expires

    def _try(self) -> _Held | None:
        """Try to take the lease; return who has it, or None on success."""
        own = owner_of(self.run)
        etag = self.objects.create(self.name, own)
        if etag is None:
            try:
                content, head = self.objects.get(self.name)
            except FileNotFoundError:  # two runs have tried at once
                return _Held("another run", 0.0)
            owner = owner_in(content)
            if owner.get("nonce") == json.loads(own)["nonce"]:  # the answer to the first attempt was lost
                self._etag, self._own = head.etag, content
                return None
            if owner and owner.get("run") != self.run and (left_s := EXPIRES_S - self._age_s(head)) > 0:
                who = f"run {owner.get('run')} (process {owner.get('pid')} on {owner.get('host')})"
                return _Held(who if "run" in owner else "a damaged lease", left_s)
            etag = self.objects.replace(self.name, own, head.etag)
        if etag is None:
            return _Held("another run", 0.0)
        self._etag, self._own = etag, own
        return None

    def _age_s(self, head: Head) -> float:
        """Return for how many seconds a lease was not renewed, by the clock of the store."""
        return clock_of(self.objects, self.run) - head.modified

    async def _renew(self) -> None:
        renewed = time.monotonic()
        while not self._why_lost:
            await asyncio.sleep(RENEW_S)
            began = time.monotonic()
            try:
                if await _in_thread(self._renew_once):
                    renewed = began
                else:
                    self._why_lost = "was taken over by another run"
            except Unreachable as error:
                if time.monotonic() - renewed >= EXPIRES_S - RENEW_S:
                    self._why_lost = f"could not be renewed in time ({error})"
        self._why_lost = (
            f"the lease {self.objects.url}/{self.name} {self._why_lost}; run the same command again: "
            "nothing is paid again"
        )
        self._lost(self._why_lost)

    def _renew_once(self) -> bool:
        content = owner_of(self.run)
        etag = self.objects.replace(self.name, content, self._etag)
        if etag is None:
            try:
                found, head = self.objects.get(self.name)
            except FileNotFoundError:
                return False
            if found == self._own:  # a store may refuse a condition that holds, while another request goes on
                raise Unreachable(f"{self.objects.url}/{self.name} could not be replaced")
            if found != content:  # otherwise the answer to the first attempt was lost
                return False
            etag = head.etag
        self._etag, self._own = etag, content
        return True


def owner_of(run: str) -> bytes:
    """Return the content of a lease of a run, by which its owner knows it again: no two are equal."""
    return json.dumps({"run": run, "host": socket.gethostname(), "pid": os.getpid(), "nonce": uuid4().hex}).encode()


def owner_in(content: bytes) -> dict[str, Any]:
    """Return the owner of a lease, {} of one that was given back. A damaged one has an owner without a run."""
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        return {"damaged": True}
    return found if isinstance(found, dict) else {"damaged": True}


def clock_of(objects: Objects, run: str) -> float:
    """Return the time of the store, in Unix seconds: the time stamp of an object that a run writes for this.

    Raises:
        Unreachable: when the shared state cannot be asked.
    """
    name, content = f"clocks/{run}", uuid4().bytes
    for _ in range(_ATTEMPTS):
        with suppress(FileNotFoundError):  # a store may refuse a condition that holds, while another write goes on
            if objects.create(name, content) is None:
                objects.replace(name, content, objects.head(name).etag)
            found, head = objects.get(name)
            if found == content:
                return head.modified
    raise Unreachable(f"{objects.url}/{name} was written {_ATTEMPTS} times, and never had what was sent")


async def _in_thread(ask: Callable[..., _Answer], *arguments: object) -> _Answer:
    """Return what an object store answers. Work of stages, which fills the common threads, must not delay a renewal."""
    return await asyncio.get_running_loop().run_in_executor(_THREADS, ask, *arguments)
