"""One batch from its entry in the ledger to its receipt: submit it, wait for its end, store its results, reconcile.

Every step is written into the ledger before the next one begins, so that whoever comes after a kill goes on where it
was. A step whose outcome is not known (a lost connection, a kill) is never repeated before the provider was asked.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from tracefactory.core.errors import RunStopped
from tracefactory.core.model import ModelSpec
from tracefactory.serving.batches.ledger import Entry, Ledger, Requests
from tracefactory.serving.batches.protocol import BatchApi, BatchState, Limits, Refusal
from tracefactory.serving.batches.results import Listener, Reader, Results, Services, difference
from tracefactory.serving.failures import AttemptFailed

T = TypeVar("T")

LATER = frozenset({"token_limit_exceeded", "rate_limit_exceeded", "resource_exhausted", "8"})
"""Codes of a batch that failed because too much is enqueued at the provider: it is submitted again later."""
_PUT_S = 60.0  # for the completions of a batch to be put into a shared state
_LOST = {"expired": "batch_expired", "cancelled": "batch_cancelled"}


@dataclass(frozen=True)
class Times:
    """Times in seconds; tests make them short.

    Attributes:
        quiet: a batch is submitted when no further request has come for this long.
        first_poll, longest_poll: the first wait between two looks at a batch, which grows to the longest.
        settle: after this time a provider lists a batch that it was told to create.
        again: the first wait before a refused batch is submitted again.
    """

    quiet: float = 5.0
    first_poll: float = 5.0
    longest_poll: float = 300.0
    settle: float = 20.0
    again: float = 30.0


class Tender:
    """Works on the batches of one model; the lock of an entry is held by the caller.

    `max_wait_s` is how long a batch may take before it is cancelled; `looked_at` is called with every state seen.
    """

    def __init__(
        self,
        spec: ModelSpec,
        api: BatchApi,
        ledger: Ledger,
        services: Services,
        listener: Listener,
        times: Times,
        max_wait_s: float | None,
    ) -> None:
        self.spec, self.api, self.ledger = spec, api, ledger
        self.services, self.listener, self.times, self.max_wait_s = services, listener, times, max_wait_s
        self.reader = Reader(spec, api, services, listener)
        self.most = api.most
        self.next_look: dict[str, float] = {}  # by entry, Unix time
        self.refused = ""  # why no batch can be created at the moment
        self.busy: set[asyncio.Task[Any]] = set()  # tasks that are better not cancelled now

    async def submit(self, entry: Entry, *, is_new: bool) -> Entry | None:
        """Create the batch of an intent, or find the one that was created before a kill.

        Returns:
            The submitted entry; None when the intent was given up, so that its requests are owed again.

        Raises:
            RunStopped: when the provider refuses it, or cannot be reached.
        """
        if not is_new:
            found = await self._find(entry)
            if found is None:
                await self._give_up(entry)
            return found
        if not entry.file:
            file = await self._try("upload a file", self.api.upload, self.ledger.input_file(entry.id), entry.id)
            entry = self.ledger.write(entry.model_copy(update={"file": file}))
        return await self._create(entry)

    async def wait(self, entry: Entry) -> Entry:
        """Look at a batch until it has ended; after `max_wait_s` it is cancelled."""
        delay_s, cancelled = self.times.first_poll, False
        while True:
            state = await self._try(f"look at batch {entry.batch}", self.api.state, entry.batch)
            if state.outcome:
                return self._ended(entry, state)
            if state.ends_at is not None and state.ends_at != entry.ends_at:
                entry = self.ledger.write(entry.model_copy(update={"ends_at": state.ends_at}))
            left_s = float("inf") if self.max_wait_s is None else entry.made + self.max_wait_s - time.time()
            if left_s <= 0 and not cancelled:
                await self._try(f"cancel batch {entry.batch}", self.api.cancel, entry.batch)
                cancelled, delay_s = True, self.times.first_poll
            wait_s = random.uniform(0.8, 1.2) * delay_s
            if not cancelled:
                wait_s = min(wait_s, max(left_s, 0.01))
            self.next_look[entry.id] = time.time() + wait_s
            await asyncio.sleep(wait_s)
            delay_s = min(1.5 * delay_s, self.times.longest_poll)

    async def collect(self, entry: Entry) -> Entry | None:
        """Read all results of an ended batch, store every completion, and reconcile them with what the provider says.

        Returns:
            The stored entry; None when it was given up: nothing of it was done, or it is somebody else's batch.

        Raises:
            RunStopped: when the results differ from what the provider counts, or cannot be had any more.
        """
        with self._busy_now():
            return await self._collect(entry)

    async def _collect(self, entry: Entry) -> Entry | None:
        problem = ""
        for look in range(3):  # what a provider counts may be ahead of the files it shows
            if look:
                await asyncio.sleep(self.times.first_poll)
            state = await self._try(f"look at batch {entry.batch}", self.api.state, entry.batch)
            entry = self._ended(entry, state)
            if state.outcome == "failed" and state.refusals and not state.succeeded:
                await self._refused(entry, state.refusals)
                return None
            with self.ledger.requests(entry.id) as requests:
                read = await self._read(entry, requests)
                if not self.api.finds_by_tag and read.foreign and not read.answered and not read.failed:
                    return await self._reject(entry)
                problem = difference(entry, state, read)
                if not problem:
                    return await self._store(entry, requests, read)
        raise RunStopped(
            f"batch {entry.batch} at {self.api.http.host}: {problem}. Every completion received is stored, and "
            "nothing was deleted at the provider. Run the same command to look again; to go on without what is "
            f"missing, and pay for it again, delete {self.ledger.folder / entry.id}.json"
        )

    async def clean(self, entry: Entry) -> None:
        """Delete the files of a stored batch at the provider, once no machine can need them again.

        Where its completions are not in the shared state in time, the files are left to the next run.
        """
        end = time.monotonic() + _PUT_S
        while self.ledger.is_unshared(entry.id):
            if time.monotonic() > end:
                return
            await asyncio.sleep(min(1.0, self.times.first_poll))
        with self._busy_now():
            try:
                await self._try(f"delete the files of batch {entry.batch}", self.api.delete, entry, entry.results)
            except RunStopped:
                return  # the receipt says so, and the next run tries again
            self.ledger.write(entry.model_copy(update={"state": "stored", "keys": (), "deleted": True}))

    async def _create(self, entry: Entry) -> Entry | None:
        """Create a batch. Before a create whose outcome is unknown is repeated, the provider is asked for the batch."""
        tries, delay_s = 0, self.times.again
        while True:
            try:
                return await self._create_once(entry)
            except AttemptFailed as failed:
                self.refused = failed.message
                if failed.kind.retries == "no":  # a definite refusal: there is no batch
                    await self._give_up(entry)
                    raise self._stopped("create a batch", failed) from None
                if failed.kind.name == "rate_limited":  # not a try: too much is enqueued, or batches come too fast
                    if self.max_wait_s is not None and time.time() > entry.made + self.max_wait_s:
                        await self._give_up(entry)
                        return None
                    await asyncio.sleep(max(failed.retry_after_s or 0.0, random.uniform(0.5, 1.0) * delay_s))
                    delay_s = min(2 * delay_s, 600.0)
                    continue
                tries += 1
                if (found := await self._find(entry)) is not None:
                    return found
                if tries > self.spec.retries:
                    raise self._stopped("create a batch", failed) from None

    async def _create_once(self, entry: Entry) -> Entry:
        """Create a batch and write its id into the ledger."""
        with self._busy_now():
            state = await self.api.create(self.ledger.input_file(entry.id), entry.file, entry.id)
            self.refused = ""
            return self._submitted(entry, state.id, state.ends_at)

    @contextmanager
    def _busy_now(self) -> Iterator[None]:
        """Mark what a run that ends waits for some time for, because the next run would have to repair it."""
        task: asyncio.Task[Any] | None = asyncio.current_task()
        assert task is not None
        outermost = task not in self.busy
        self.busy.add(task)
        try:
            yield
        finally:
            if outermost:
                self.busy.discard(task)

    async def _find(self, entry: Entry) -> Entry | None:
        """Return the entry with the batch that the provider made of it; None when it has made none."""
        for wait_s in (0.0, self.times.settle):  # a batch may be listed some time after it was created
            await asyncio.sleep(wait_s)
            found = await self._try("list the batches", self.api.find, entry)
            known = {one.batch for one in self.ledger.entries() if one.id != entry.id} | set(entry.rejected)
            ours = [batch for batch in found if batch not in known]
            if ours and self.api.finds_by_tag:
                for twin in ours[1:]:  # two creates were accepted: the later one is ended before it costs more
                    await self._try(f"cancel batch {twin}", self.api.cancel, twin)
            if ours:
                return self._submitted(entry, ours[0], None)
        return None

    def _submitted(self, entry: Entry, batch: str, ends_at: float | None) -> Entry:
        changed = {"state": "submitted", "batch": batch, "submitted": time.time(), "ends_at": ends_at}
        entry = self.ledger.write(entry.model_copy(update=changed))
        self.ledger.input_file(entry.id).unlink(missing_ok=True)
        return entry

    def _ended(self, entry: Entry, state: BatchState) -> Entry:
        changed = {"state": "ended", "outcome": state.outcome, "results": state.results}
        return self.ledger.write(entry.model_copy(update=changed))

    async def _give_up(self, entry: Entry) -> None:
        """Remove an intent that has no batch, and the file that was uploaded for it."""
        if entry.file:
            with suppress(AttemptFailed):  # a file costs nothing, and the provider may be unreachable
                await self.api.delete(entry, ())
        self.ledger.give_up(entry)

    async def _reject(self, entry: Entry) -> Entry | None:
        """Go back to the intent: the batch that was taken for ours answers other requests."""
        rejected = (*entry.rejected, entry.batch)
        intent = {"state": "intent", "batch": "", "submitted": None, "outcome": "", "results": (), "rejected": rejected}
        entry = self.ledger.write(entry.model_copy(update=intent))
        found = await self.submit(entry, is_new=False)
        return None if found is None else await self.collect(await self.wait(found))

    async def _refused(self, entry: Entry, refusals: Sequence[Refusal]) -> None:
        """Deal with a batch that failed as a whole, for which nothing is billed."""
        with self.ledger.requests(entry.id) as requests:
            keys = list(requests)
        reasons = "; ".join(dict.fromkeys(f"{one.code} {one.message}".strip() for one in refusals))
        later = any(one.code.lower() in LATER for one in refusals)
        lines = {one.line: one for one in refusals if one.line is not None and 0 < one.line <= len(keys)}
        for number, one in lines.items():
            refused = AttemptFailed("bad_request", f"{one.code}: {one.message}")
            self.listener.failed(keys[number - 1], refused.failed(1, others_answered=True))
        await self._give_up(entry)
        if later:
            self.refused, self.most = reasons, Limits(max(1, len(keys) // 2), self.most.bytes)
            await asyncio.sleep(random.uniform(0.5, 1.0) * self.times.again)
        elif not lines:
            raise RunStopped(
                f"{self.api.http.host} refused batch {entry.batch} of {len(keys):,} requests: {reasons}. Nothing of it "
                "was answered or billed; correct the model or the stage, then run the same command"
            )

    async def _read(self, entry: Entry, requests: Requests) -> Results:
        """Read all results files and see everything in them stored; a file whose connection is lost is read again.

        Raises:
            RunStopped: when one of them cannot be had; the others were read.
        """
        results = Results(self.services.present(list(requests)))
        lost: RunStopped | None = None
        for file in entry.results:
            try:
                what = f"read results of batch {entry.batch}"
                await self._try(what, self.reader.read, entry, file, requests, results)
            except RunStopped as error:
                lost = error
        await self.reader.see_stored(requests, results)
        if lost is not None:
            raise RunStopped(
                f"{lost}. If they are gone for good, what was answered only there is lost, and billed: delete "
                f"{self.ledger.folder / entry.id}.json to pay for it again"
            )
        return results

    async def _store(self, entry: Entry, requests: Requests, read: Results) -> Entry:
        """Close an entry, and tell those who wait that there is nothing more to come."""
        await self.services.sync()
        self.ledger.set_aside(entry.id, read.malformed)
        missing = [key for key in requests if key not in read.answered and key not in read.failed]
        tally = {
            "answered": float(len(read.answered)),
            "failed": float(len(read.failed)),
            "without_a_line": float(len(missing)),
            "malformed_lines": float(len(read.malformed)),
            "prompt_tokens": float(read.prompt_tokens),
            "completion_tokens": float(read.completion_tokens),
        }
        entry = entry.model_copy(update={"state": "stored", "tally": tally})
        self.ledger.finish(entry)
        lost = AttemptFailed(_LOST.get(entry.outcome, "batch_missing"), f"batch {entry.batch} was {entry.outcome}")
        for key, failed in [*read.failed.items(), *((key, lost) for key in missing)]:
            self.listener.failed(key, failed.failed(1, others_answered=bool(read.answered)))
        return entry

    async def _try(self, what: str, call: Callable[..., Awaitable[T]], *arguments: Any) -> T:
        """Repeat a call that changes nothing when it is repeated, while its failures can pass.

        Raises:
            RunStopped: when it is refused, or when it has failed for the model's `max_pause_s`.
        """
        delay_s, first = min(1.0, self.times.again), time.monotonic()
        while True:
            try:
                return await call(*arguments)
            except AttemptFailed as failed:
                if failed.kind.retries == "no" or time.monotonic() - first > self.spec.max_pause_s:
                    raise self._stopped(what, failed) from None
                await asyncio.sleep(max(failed.retry_after_s or 0.0, random.uniform(0.5, 1.0) * delay_s))
                delay_s = min(2 * delay_s, 60.0)

    def _stopped(self, what: str, failed: AttemptFailed) -> RunStopped:
        remedy = f" ({failed.kind.remedy})" if failed.kind.remedy else ""
        return RunStopped(
            f"{self.spec.model}: could not {what} at {self.api.http.host}: {failed.kind.name}: {failed.message}{remedy}"
            ". Submitted batches stay at the provider and in the ledger, and the same command goes on with them"
        )
