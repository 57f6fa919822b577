"""The batches of a worker: which requests are answered by them, and where completions go that no request waits for."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tracefactory.core.environment import Environment
from tracefactory.core.errors import RunStopped
from tracefactory.core.keys import model_digest
from tracefactory.core.model import ChatRequest, Completion, ModelSpec
from tracefactory.core.pipeline import Pipeline
from tracefactory.core.stage import Completer, Record
from tracefactory.engine.stored import usable_records
from tracefactory.store.requests import RequestStore

if TYPE_CHECKING:
    from tracefactory.serving.batches.ledger import Ledger
    from tracefactory.serving.batches.runner import BatchRunner

Keep = Callable[[str, ChatRequest, Completion], Awaitable[None]]
"""Stores a completion of a model, by its name in the pipeline."""


class Batches:
    """The batch runners of one worker, by model; made by the first request.

    Args:
        pipeline: the pipeline.
        root: the state folder.
        run_id: the run.
        requests: the request store of the worker.
        keep: stores a completion that no request waits for.
        client: returns the client of a model, by its name.
        environment: returns the surroundings of the run.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        root: Path,
        run_id: str,
        requests: RequestStore,
        keep: Keep,
        client: Callable[[str], Completer],
        environment: Callable[[], Environment],
    ) -> None:
        self.pipeline, self.root, self.run_id, self.requests, self._keep = pipeline, root, run_id, requests, keep
        self._client, self._environment = client, environment
        self._runners: dict[str, BatchRunner] = {}
        self._checked: set[str] = set()
        self._ledger: Ledger | None = None

    def completer(self, model: str, online: Completer, environment: Environment) -> Completer:
        """Return what answers the requests of a model: its batches if it has some, else its client.

        Raises:
            RunStopped: when requests are in a batch of a model that is declared without batches.
        """
        spec = self.pipeline.models[model]
        if spec.batching is None:
            self._check_left(model, spec, environment)
            return online
        if model not in self._runners:
            from tracefactory.serving.batches.apis import api_of
            from tracefactory.serving.batches.ledger import Ledger
            from tracefactory.serving.batches.runner import BatchRunner

            api, place = api_of(spec, environment)
            stored = _Stored(self.requests, model, self._keep)
            ledger = Ledger(self.root, shared=bool(self.pipeline.project.shared))
            self._runners[model] = BatchRunner(spec, spec.batching, api, place, ledger, stored, online, self.run_id)
        return self._runners[model]

    def at_once(self, model: str, online: Completer, environment: Environment) -> Completer | None:
        """Return what answers a request online unless it is in a batch; None for a model without batches."""
        if self.pipeline.models[model].batching is None:
            return None
        self.completer(model, online, environment)
        return _AtOnce(self._runners[model])

    def holds(self, model: str, key: str) -> bool:
        """Return whether a request of a model is in a batch that was submitted, or was about to be.

        Raises:
            RunError: when the ledger cannot be read.
        """
        if self.pipeline.models[model].batching is None:
            return False
        if self._ledger is None:
            from tracefactory.serving.batches.ledger import Ledger

            self._ledger = Ledger(self.root)
        return self._ledger.holds(key)

    async def fetch(self) -> bool:
        """Wait for all batches of the models of this pipeline, and see their results stored.

        Returns:
            Whether there were any.

        Raises:
            RunStopped: when batches cannot go on.
            Interrupted: when the run is being drained.
        """
        if not (self.root / "batches").is_dir():
            return False
        from tracefactory.serving.batches.ledger import Ledger

        named = {entry.place.model for entry in Ledger(self.root).entries() if entry.is_open}
        for model, spec in self.pipeline.models.items():
            if spec.batching is not None and spec.model in named:
                self.completer(model, self._client(model), self._environment())
        return any(await asyncio.gather(*(runner.fetch() for runner in self._runners.values())))

    def notice(self, model: str) -> str:
        """Return what waits, until when; empty where nothing does."""
        return self._runners[model].notice if model in self._runners else ""

    def drain(self) -> None:
        """Leave submitted batches at the provider."""
        for runner in self._runners.values():
            runner.drain()

    async def close(self) -> None:
        """Finish what is being stored, and close the connections of all models.

        Raises:
            RunError: when something went wrong that no request has reported.
        """
        found = await asyncio.gather(*(runner.close() for runner in self._runners.values()), return_exceptions=True)
        faults = [fault for fault in found if isinstance(fault, BaseException)]
        if len(faults) > 1:
            raise RunStopped("\n".join(map(str, faults))) from faults[0]
        if faults:
            raise faults[0]

    def _check_left(self, model: str, spec: ModelSpec, environment: Environment) -> None:
        """Raise RunStopped when a batch of this model was submitted before `batch:` was removed from it."""
        if model in self._checked or not (self.root / "batches").is_dir():
            return
        from tracefactory.serving.batches.ledger import Ledger

        left = [entry for entry in Ledger(self.root).entries() if entry.is_open]
        identity = model_digest(spec.identity(environment)) if left else ""
        for entry in left:
            if entry.identity == identity:
                raise RunStopped(
                    f"{model}: {entry.requests:,} of its requests are in batch {entry.batch or entry.id} at "
                    f"{entry.place.base_url}, and it has no `batch:` now. Put `batch:` back to get their completions, "
                    f"or delete {self.root / 'batches' / entry.id}.json to pay for them again"
                )
        self._checked.add(model)


@dataclass(frozen=True)
class _AtOnce:
    """Answers requests by a runner, online unless they are in a batch."""

    runner: BatchRunner

    async def complete(self, request: ChatRequest) -> Completion:
        return await self.runner.complete(request, at_once=True)


@dataclass(frozen=True)
class _Stored:
    """The request store, as the runner of one model uses it."""

    requests: RequestStore
    model: str
    keep_completion: Keep

    def stored(self, keys: Sequence[str]) -> Mapping[str, Record]:
        return usable_records(self.requests.get(keys))

    def present(self, keys: Sequence[str]) -> set[str]:
        return self.requests.present(keys)

    async def keep(self, request: ChatRequest, completion: Completion) -> None:
        await self.keep_completion(self.model, request, completion)

    async def sync(self) -> None:
        await self.requests.sync()
