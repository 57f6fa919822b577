"""The results of a batch: read in whatever order they come, stored as they are read, and reconciled in the end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from tracefactory.core.model import ChatRequest, Completion, ModelSpec, RequestFailed
from tracefactory.core.stage import Record
from tracefactory.serving.batches.ledger import Entry, Requests
from tracefactory.serving.batches.protocol import BatchApi, BatchState, Line
from tracefactory.serving.completions import read_completion
from tracefactory.serving.failures import AttemptFailed

_HANDED = 256  # completions that were handed over and are not seen in the store yet
_UNDONE = {"batch_expired", "batch_cancelled"}
_STORED_S = 10.0  # after which they are stored here


class Services(Protocol):
    """The request store, as a runner uses it."""

    def stored(self, keys: Sequence[str]) -> Mapping[str, Record]:
        """Return the completions that are stored under these keys."""
        ...

    def present(self, keys: Sequence[str]) -> set[str]:
        """Return which of these keys have a completion in the store."""
        ...

    async def keep(self, request: ChatRequest, completion: Completion) -> None:
        """Store a completion that no request waits for."""
        ...

    async def sync(self) -> None:
        """Return when what is stored survives a power failure."""
        ...


class Listener(Protocol):
    """Who waits for the requests of a batch."""

    def answered(self, key: str, completion: Completion) -> bool:
        """Hand over a completion; return whether somebody waits for it, who then stores it."""
        ...

    def failed(self, key: str, failed: RequestFailed) -> None:
        """Take note of a request without one."""
        ...


@dataclass
class Results:
    """What the results of a batch held."""

    present: set[str]  # what was in the store before
    handed: dict[str, Completion] = field(default_factory=dict)  # to somebody who stores it
    answered: set[str] = field(default_factory=set)
    unreadable: set[str] = field(default_factory=set)  # answered, and billed, in a form that cannot be read
    failed: dict[str, AttemptFailed] = field(default_factory=dict)
    malformed: set[bytes] = field(default_factory=set)
    foreign: set[str] = field(default_factory=set)
    prompt_tokens: int = 0
    completion_tokens: int = 0


class Reader:
    """Reads the results of the batches of one model."""

    def __init__(self, spec: ModelSpec, api: BatchApi, services: Services, listener: Listener) -> None:
        self.spec, self.api, self.services, self.listener = spec, api, services, listener

    async def read(self, entry: Entry, file: str, requests: Requests, read: Results) -> None:
        """Read one file and store every completion in it that is not stored yet; it may be read several times.

        Raises:
            AttemptFailed: when it cannot be read to its end.
        """
        async for line in self.api.read(file):
            await self._take(entry, requests, line, read)

    async def _take(self, entry: Entry, requests: Requests, line: Line, read: Results) -> None:
        if line.malformed:
            read.malformed.add(line.malformed)
        if line.key not in requests:
            if not line.malformed:
                read.foreign.add(line.key)
            return
        if line.key in read.answered:
            return
        if line.answer is None:
            read.failed[line.key] = line.failure or AttemptFailed("bad_response", "its line in the results is empty")
            return
        request, since = requests[line.key], entry.submitted or entry.made
        try:
            seconds = max(0.0, time.time() - since)
            completion = read_completion(request, line.answer, self.spec.echoes_prefill, 1, seconds)
        except AttemptFailed as error:
            read.failed[line.key] = AttemptFailed("bad_response", f"its answer cannot be read: {error.message}")
            read.unreadable.add(line.key)
            return
        read.answered.add(line.key)
        read.failed.pop(line.key, None)
        read.prompt_tokens += completion.prompt_tokens
        read.completion_tokens += completion.completion_tokens
        if line.key in read.present:
            return
        completion = completion.model_copy(update={"batched": True, "batch": entry.batch})
        if self.listener.answered(line.key, completion):
            read.handed[line.key] = completion
            if len(read.handed) >= _HANDED:
                await self.see_stored(requests, read)
        else:
            await self.services.keep(request, completion)
            read.present.add(line.key)

    async def see_stored(self, requests: Requests, read: Results) -> None:
        """Wait until those who were handed completions have stored them; store the others here."""
        end = time.monotonic() + _STORED_S
        while read.handed:
            present = self.services.present(list(read.handed))
            read.present |= present
            read.handed = {key: one for key, one in read.handed.items() if key not in present}
            if read.handed and time.monotonic() > end:
                for key, completion in read.handed.items():
                    await self.services.keep(requests[key], completion)
            elif read.handed:
                await asyncio.sleep(0.05)


def difference(entry: Entry, state: BatchState, read: Results) -> str:
    """Return how what was read differs from what the provider counts, in numbers; empty when it does not."""
    found = []
    if state.total and state.total != entry.requests:
        found.append(f"{entry.requests:,} requests were submitted, and it counts {state.total:,}")
    billed = len(read.answered) + len(read.unreadable - read.answered)
    # A prompt that a filter refused has a response, which a provider may count as an answer.
    unclear = len(read.malformed) + sum(one.kind.name == "content_filter" for one in read.failed.values())
    if state.succeeded is not None and not billed <= state.succeeded <= billed + unclear:
        found.append(f"it counts {state.succeeded:,} answered requests, and its results hold {billed:,}")
    refused = sum(one.kind.name not in _UNDONE for key, one in read.failed.items() if key not in read.unreadable)
    if state.failed is not None and not refused - unclear <= state.failed <= refused:
        found.append(f"it counts {state.failed:,} failed requests, and its results hold {refused:,}")
    if read.foreign:
        found.append(f"its results hold {len(read.foreign):,} lines of requests that were not in it")
    used = (read.prompt_tokens, read.completion_tokens)
    if state.usage is not None and not read.malformed and not read.unreadable and state.usage != used:
        found.append(
            f"it bills {state.usage[0]:,} tokens of prompts and {state.usage[1]:,} of completions, and the completions "
            f"that were received have {used[0]:,} and {used[1]:,}"
        )
    return "; ".join(found)
