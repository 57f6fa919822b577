"""Answers requests by batches: collects them, plans batches under the ledger's lock, and waits for them.

A request waits for a batch that holds it already, whoever submitted it; only a request that is neither stored nor in a
batch gets into a new one. The batches of one model are worked on by whichever process has the lock of their entry.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from tracefactory.core.batching import BatchSettings
from tracefactory.core.errors import Interrupted, RunStopped
from tracefactory.core.keys import model_digest
from tracefactory.core.model import ChatRequest, Completion, ModelSpec, RequestFailed
from tracefactory.core.stage import Completer
from tracefactory.serving.batches.ledger import Entry, Ledger, Place
from tracefactory.serving.batches.protocol import BatchApi
from tracefactory.serving.batches.results import Services
from tracefactory.serving.batches.tending import Tender, Times
from tracefactory.serving.failures import AttemptFailed

_BUSY_S = 30.0  # for what the next run would have to repair, such as learning the id of a batch that is being created


@dataclass
class _Waiting:
    """A request that waits for its answer; the answer None means: send it online."""

    request: ChatRequest
    answer: asyncio.Future[Completion | None]
    since: float


class BatchRunner:
    """Answers the requests of one model by batches.

    Args:
        spec: the model.
        settings: its `batch:`.
        api: the provider's batch API.
        place: where its batches are, as the ledger names it.
        ledger: the ledger of the state folder.
        services: the request store.
        online: the model's own client, for what is sent without a batch.
        run_id: the run, for the ledger.
        times: how long to wait for what.
    """

    def __init__(
        self,
        spec: ModelSpec,
        settings: BatchSettings,
        api: BatchApi,
        place: Place,
        ledger: Ledger,
        services: Services,
        online: Completer,
        run_id: str,
        times: Times | None = None,
    ) -> None:
        self.spec, self.settings, self.api, self.place = spec, settings, api, place
        self.ledger, self.services, self.online = ledger, services, online
        self.run_id, self.times = run_id, times or Times()
        self.tender = Tender(spec, api, ledger, services, self, self.times, settings.max_wait_s)
        self._waiting: dict[str, _Waiting] = {}
        self._new: dict[str, None] = {}  # keys that are in no batch that we know of
        self._last = 0.0  # when the last of them arrived
        self._tended: dict[str, Entry] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._ended: Exception | None = None
        self._told = False  # whether somebody was given that
        self._planning = False

    async def complete(self, request: ChatRequest, *, at_once: bool = False) -> Completion:
        """Return the completion of a request; the caller stores it.

        Args:
            request: the request.
            at_once: send it online, unless it is in a batch already.

        Raises:
            RequestFailed: when it has none; what its batch did not answer is owed.
            RunStopped: when batches cannot go on.
            Interrupted: when the run is being drained; batches that were submitted go on at the provider.
        """
        if self._ended is not None:
            self._told = True
            raise self._ended
        if at_once:
            async with self.ledger.locked():
                at_once = not any(request.key in entry.keys for entry in self.ledger.entries())
        if not at_once:
            waiting = self._waiting.get(request.key)
            if waiting is None:
                answer: asyncio.Future[Completion | None] = asyncio.get_running_loop().create_future()
                waiting = self._waiting[request.key] = _Waiting(request, answer, time.time())
                self._plan([request.key])
            completion = await asyncio.shield(waiting.answer)
            if completion is not None:
                return completion
        return await self.online.complete(request)

    def answered(self, key: str, completion: Completion) -> bool:
        """Hand over a completion; return whether somebody waits for it, who then stores it."""
        return self._set(key, completion)

    def failed(self, key: str, failed: RequestFailed) -> None:
        """Take note of a request without a completion: with `max_wait` it is asked again, else it is owed."""
        waiting = self._waiting.get(key)
        if waiting is not None and failed.retryable and self.settings.max_wait_s is not None:
            self._plan([key])
        elif waiting is not None:
            del self._waiting[key]
            if not waiting.answer.done():
                waiting.answer.set_exception(failed)
                waiting.answer.exception()  # mark as retrieved: its waiter may have been cancelled

    async def fetch(self) -> bool:
        """Wait for the end of all batches of this model, and see their results stored; return whether there were any.

        Raises:
            RunStopped: when batches cannot go on.
            Interrupted: when the run is being drained.
        """
        await asyncio.sleep(self.times.quiet)  # those who ask for what is in them come first
        await self._submit([])
        fetched = any(entry.is_open for entry in self._tended.values())
        while self._tasks and self._ended is None:
            await asyncio.wait(self._tasks)
        if self._ended is not None:
            self._told = True
            raise self._ended
        return fetched

    def drain(self) -> None:
        """Submit and wait for nothing further; batches that were submitted stay at the provider and in the ledger."""
        self._end(Interrupted())

    @property
    def notice(self) -> str:
        """How many batches wait, since when, and until when; empty when none does."""
        batches = [one for one in self._tended.values() if one.is_open]
        parts = []
        if batches:
            now, requests = time.time(), sum(one.requests for one in batches)
            looks = [at for one in batches if (at := self.tender.next_look.get(one.id)) is not None]
            ends = [one.ends_at for one in batches if one.ends_at is not None]
            parts.append(
                f"{len(batches)} batch{'es' if len(batches) > 1 else ''} of {requests:,} requests wait at "
                f"{self.api.http.host} for {_span(now - min(one.made for one in batches))}"
                + (f", next look in {_span(max(0.0, min(looks) - now))}" if looks else "")
                + (f", the window ends at {_clock(max(ends))}" if ends else "")
            )
        if self.tender.refused:
            parts.append(f"no further batch is taken at the moment ({self.tender.refused})")
        return "; ".join(parts)

    async def close(self) -> None:
        """Finish what is being stored and written into the ledger, and leave the batches at the provider.

        Raises:
            RunStopped: when something went wrong that no request could report, because every request was answered.
        """
        for task in self._tasks - self.tender.busy:
            task.cancel()
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=_BUSY_S)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
        self._end(Interrupted())
        await self.api.http.close()
        if not self._told and not isinstance(self._ended, Interrupted) and self._ended is not None:
            raise self._ended

    def _plan(self, keys: Iterable[str]) -> None:
        """Put requests into batches, as soon as no further ones come."""
        self._new |= dict.fromkeys(keys)
        self._last = time.monotonic()
        if not self._planning and self._ended is None:
            self._planning = True
            self._start(self._plan_when_quiet())

    async def _plan_when_quiet(self) -> None:
        try:
            while self._new:
                left_s = self._last + self.times.quiet - time.monotonic()
                # While further ones come, only full batches are submitted.
                rest = len(self._new) % self.tender.most.requests if left_s > 0 else 0
                if rest == len(self._new):
                    await asyncio.sleep(min(left_s, 0.2))
                    continue
                keys = list(self._new)[: len(self._new) - rest]
                for key in keys:
                    del self._new[key]
                await self._submit([key for key in keys if key in self._waiting])
        finally:
            self._planning = False

    async def _submit(self, keys: list[str]) -> None:
        """Find out which requests are stored or in a batch, and write intents for the others."""
        new: list[Entry] = []
        async with self.ledger.locked():
            entries = [entry for entry in self.ledger.entries() if entry.is_open or not entry.deleted]
            held = {key: entry for entry in entries for key in entry.keys}
            self._check_places({held[key].id: held[key] for key in keys if key in held}.values())
            # The store is read after the ledger: what a batch answered is stored before its entry is closed.
            loose = [key for key in keys if key not in held]
            for key, record in self.services.stored(sorted(self.services.present(loose))).items():
                self._set(key, Completion.model_validate(record["completion"]))
            rest = [key for key in loose if key in self._waiting]
            late = {key for key in rest if self._is_late(self._waiting[key])}
            if len(rest) - len(late) < self.settings.min_requests:
                late = set(rest)
            for lines in self._split([key for key in rest if key not in late], late):
                requests = {key: self._waiting[key].request for key in lines}
                entry = Entry(
                    id=uuid4().hex,
                    place=self.place,
                    run=self.run_id,
                    identity=model_digest(next(iter(requests.values())).model_identity),
                    made=min(self._waiting[key].since for key in lines),
                    requests=len(lines),
                    keys=tuple(lines),
                )
                lock = self.ledger.own(entry.id)
                await asyncio.to_thread(self.ledger.begin, entry, requests, lines.values())
                new.append(entry)
                self._tended[entry.id] = entry
                self._start(self._tend(entry, lock))
        for key in late:
            self._set(key, None)
        for entry in entries:
            if entry.place == self.place and entry.id not in self._tended:
                self._tended[entry.id] = entry
                self._start(self._tend(entry, None))

    def _check_places(self, entries: Iterable[Entry]) -> None:
        """Raise RunStopped when requests are in a batch at another address than the model now has."""
        for entry in entries:
            if entry.place != self.place:
                raise RunStopped(
                    f"{self.spec.model}: {len(entry.keys):,} requests are in batch {entry.batch or entry.id} at "
                    f"{entry.place.base_url} ({entry.place.protocol}, {entry.place.model}), and the model is now at "
                    f"{self.place.base_url} ({self.place.protocol}). Run once with the former address to fetch them, "
                    f"or delete {self.ledger.folder / entry.id}.json to pay for them again"
                )

    def _is_late(self, waiting: _Waiting) -> bool:
        most = self.settings.max_wait_s
        return most is not None and time.time() > waiting.since + most

    def _split(self, keys: list[str], late: set[str]) -> Iterator[Mapping[str, bytes]]:
        """Yield the lines of batches within the provider's limits; what does not fit into any is added to `late`."""
        lines: dict[str, bytes] = {}
        size, most = 0, self.tender.most
        for key in keys:
            try:
                line = self.api.request_line(key, self.spec.body(self._waiting[key].request))
            except AttemptFailed as failed:
                self.failed(key, failed.failed(0, others_answered=True))
                continue
            if len(line) >= most.bytes:
                late.add(key)
                continue
            if len(lines) == most.requests or size + len(line) + 1 > most.bytes:
                yield lines
                lines, size = {}, 0
            lines[key] = line
            size += len(line) + 1
        if lines:
            yield lines

    async def _tend(self, entry: Entry, lock: Any) -> None:
        """Work on one batch to its end, or wait until another process has done so."""
        is_new = lock is not None
        try:
            while lock is None:
                lock = self.ledger.own(entry.id)
                if lock is None:
                    self._show(self.ledger.entry(entry.id))
                    await asyncio.sleep(min(1.0, self.times.first_poll))
            current: Entry | None = entry if is_new else self.ledger.entry(entry.id)
            if current is not None and current.state == "intent":
                current = self._show(await self.tender.submit(current, is_new=is_new))
                if self._ended is not None:
                    return
            if current is not None and current.state == "submitted":
                current = self._show(await self.tender.wait(current))
            if current is not None and current.state == "ended":
                current = await self.tender.collect(current)
            if current is not None and not current.deleted:
                await self.tender.clean(current)
        finally:
            self._tended.pop(entry.id, None)
            self.tender.next_look.pop(entry.id, None)
            if lock is not None:
                lock.close()
        if open_ := [key for key in entry.keys if key in self._waiting and key not in self._new]:
            self._plan(open_)

    def _show(self, entry: Entry | None) -> Entry | None:
        if entry is not None and entry.id in self._tended:
            self._tended[entry.id] = entry
        return entry

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        async def guarded() -> None:
            try:
                await work
            except Exception as error:  # noqa: BLE001  # those who wait for an answer raise it
                self._end(error)

        task = asyncio.create_task(guarded())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _end(self, reason: Exception) -> None:
        """Give every request that waits the same reason why there is no answer now."""
        if self._ended is not None:
            return
        self._ended = reason
        for waiting in self._waiting.values():
            if not waiting.answer.done():
                self._told = True
                waiting.answer.set_exception(reason)
                waiting.answer.exception()  # mark as retrieved: its waiter may have been cancelled
        self._waiting.clear()
        for task in self._tasks - self.tender.busy:
            if task is not asyncio.current_task():
                task.cancel()

    def _set(self, key: str, answer: Completion | None) -> bool:
        waiting = self._waiting.pop(key, None)
        if waiting is None or waiting.answer.done():
            return False
        waiting.answer.set_result(answer)
        return True


def _span(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{int(seconds // 3600)}:{int(seconds % 3600 // 60):02d} h"


def _clock(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(at))
