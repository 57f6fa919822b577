"""Which request goes to which server of a model, and when: one queue before the limits of all its servers."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from urllib.parse import urlsplit

from tracefactory.core.errors import Interrupted, RunStopped
from tracefactory.serving.adaptive_limits import AdaptiveLimits
from tracefactory.serving.failures import AttemptFailed
from tracefactory.serving.status import EndpointStatus

FIRST_ANSWER_S = 120.0
"""Seconds that servers which have not answered once may fail: they are more likely wrong than out for a while."""
_AVOIDED_S = 10.0  # how long a server is avoided after a failed connection, while there is another one


@dataclass
class _Waiter:
    granted: asyncio.Future[str]
    near: str


class Dispatcher:
    """Grants requests their turn, each to one of the servers.

    Args:
        name: the model, for messages.
        most: the greatest number of requests in flight, in all and to one server.
        max_pause_s: seconds that all servers may refuse everything before the run stops.
    """

    def __init__(self, name: str, most: int, max_pause_s: float) -> None:
        self.name, self.most, self.max_pause_s = name, most, max_pause_s
        self.ended = asyncio.Event()
        self._reason: Exception = Interrupted()
        self._limits: dict[str, AdaptiveLimits] = {}
        self._urls: tuple[str, ...] = ()
        self._waiting: deque[_Waiter] = deque()
        self._timer: asyncio.TimerHandle | None = None

    async def turn(self, urls: Iterable[str], near: str = "") -> str:
        """Wait for a turn and return the server to ask; end it with `end`.

        Args:
            urls: the servers that are up.
            near: requests with the same text go to the same server while it is up.

        Raises:
            Interrupted: when the run is being drained.
            RunStopped: when another request has stopped the run.
        """
        self._urls = tuple(urls)
        for url in self._urls:
            if url not in self._limits:
                self._limits[url] = AdaptiveLimits(self.most)
        if self.ended.is_set():
            raise self._reason
        waiter = _Waiter(asyncio.get_running_loop().create_future(), near)
        self._waiting.append(waiter)
        self._grant()
        try:
            return await waiter.granted
        except asyncio.CancelledError:
            if waiter.granted.done() and not waiter.granted.cancelled():
                self.end(waiter.granted.result())
            else:
                self._waiting.remove(waiter)
            raise

    def end(self, url: str) -> None:
        """End a turn: the request was answered, or it failed."""
        self._limits[url].ended()
        self._grant()

    def answered(self, url: str) -> None:
        """Note that a server has answered."""
        self._limits[url].answered(time.monotonic())

    def failed(self, url: str, sent_at: float, request: object, failure: AttemptFailed) -> None:
        """Note a failure that tells of the state of a server.

        Raises:
            RunStopped: when no server has answered anything for `max_pause_s`, one asks for a longer wait, or none has
                ever answered for `FIRST_ANSWER_S`, unless one says that it is overloaded or starting.
        """
        now = time.monotonic()
        wait = failure.retry_after_s
        if failure.kind.name == "connection" and len(self._urls) > 1:  # a dead server fails fast and so looks idle
            wait = _AVOIDED_S
        reason = f"{urlsplit(url).netloc}: {failure.message}"
        self._limits[url].failed(
            now, sent_at, request, reason, refused=failure.kind.name == "rate_limited", retry_after_s=wait
        )
        limits = [self._limits[one] for one in self._urls]
        silent_s = min((one.silent_s(now) for one in limits), default=0.0)
        asked_s = min((one.paused_until - now for one in limits), default=0.0)
        waits = failure.kind.name in ("rate_limited", "overloaded")
        if not waits and silent_s > FIRST_ANSWER_S and all(one.answered_at is None for one in limits):
            raise RunStopped(
                f"{self.name} has not answered once, and is silent for {silent_s:.0f} s ({reason}); check `base_url:`, "
                "and that the server runs, then run the same command"
            )
        if max(silent_s, asked_s) > self.max_pause_s:
            what = f"asks to wait {asked_s:.0f} s" if asked_s > self.max_pause_s else f"is silent for {silent_s:.0f} s"
            raise RunStopped(
                f"{self.name} {what}, longer than max_pause_s: {self.max_pause_s:g} ({reason}); what was paid for is "
                "stored, and the same command goes on when the server answers again"
            )

    def is_paused(self, url: str) -> bool:
        """Return whether a server fails for all requests, so that the failure of one says nothing of it."""
        return self._limits[url].opened_at is not None

    def stop(self, reason: Exception) -> None:
        """Grant no further turns; those who wait for one, or come later, get an exception."""
        self._reason = reason
        self.ended.set()
        while self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.granted.done():
                waiter.granted.set_exception(reason)

    async def sleep(self, seconds: float) -> None:
        """Wait before another try.

        Raises:
            Interrupted, RunStopped: when no further turns are granted.
        """
        try:
            await asyncio.wait_for(self.ended.wait(), seconds)
        except TimeoutError:
            return
        raise self._reason

    def endpoints(self) -> tuple[EndpointStatus, ...]:
        """Return the state of every server."""
        now = time.monotonic()
        servers = [(url, self._limits[url]) for url in self._urls]
        return tuple(
            EndpointStatus(
                host=urlsplit(url).netloc,
                in_flight=limits.in_flight,
                limit=1 if limits.opened_at is not None else int(limits.limit),
                rate=limits.rate,
                answered=limits.answers,
                refused=limits.refusals,
                failed=limits.faults,
                paused_s=max(0.0, limits.paused_until - now),
                reason=limits.reason,
            )
            for url, limits in servers
        )

    @property
    def notice(self) -> str:
        """Why the servers are asked little or nothing at the moment; empty when they are not held back."""
        now = time.monotonic()
        held = [
            self._limits[url] for url in self._urls if self._limits[url].reason and self._limits[url].in_flight == 0
        ]
        waits = [limits for limits in held if limits.paused_until > now]
        if not waits or len(waits) < len(self._urls):
            return ""
        first = min(waits, key=lambda one: one.paused_until)
        until = datetime.fromtimestamp(time.time() + first.paused_until - now).strftime("%H:%M:%S")
        if first.opened_at is None:
            return f"waits until {until} ({first.reason})"
        gives_up = datetime.fromtimestamp(time.time() + first.opened_at + self.max_pause_s - now).strftime("%H:%M:%S")
        return f"paused, tries again at {until}, gives up at {gives_up} ({first.reason})"

    def _grant(self) -> None:
        """Give turns to those who wait first, as far as the limits of the servers allow it now."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        now = time.monotonic()
        while self._waiting:
            waiter = self._waiting[0]
            if waiter.granted.done():
                self._waiting.popleft()
                continue
            url, wait_s = self._choose(now, waiter.near)
            if wait_s is None:
                return  # the end of a request in flight comes here again
            if wait_s > 0:
                self._timer = asyncio.get_running_loop().call_later(wait_s, self._grant)
                return
            self._waiting.popleft()
            self._limits[url].sent(now)
            waiter.granted.set_result(url)

    def _choose(self, now: float, near: str) -> tuple[str, float | None]:
        """Return the server for the next request, and the seconds until it may be sent; None until a request ends."""
        waits = {url: self._limits[url].wait_s(now) for url in self._urls}
        if near:  # rendezvous hashing: when a server is lost, only its requests move
            up = [url for url in self._urls if self._limits[url].opened_at is None] or self._urls
            return (url := max(up, key=lambda one: hashlib.sha256(f"{near} {one}".encode()).digest())), waits[url]
        ready = [url for url, wait_s in waits.items() if wait_s is not None]
        if not ready:
            return "", None
        url = min(ready, key=lambda one: (waits[one] or 0.0, self._limits[one].in_flight))
        return url, waits[url]
