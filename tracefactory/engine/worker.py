"""What runs shards: in this process (inline executor) or inside a Ray actor, the same code either way.

A worker owns what is expensive to start (clients, model endpoints, verifier processes, the request store) and starts it
when a shard first needs it.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast

from pydantic import SecretStr

from tracefactory.config import Pipeline
from tracefactory.core.errors import RunError
from tracefactory.core.op import Inputs, ShardOp, WholeOp
from tracefactory.serving.base import ChatRequest, Completion, EnvStr, ModelSpec, RequestFailed, Where
from tracefactory.serving.client import ChatClient
from tracefactory.serving.vllm.replica import Placement
from tracefactory.store.leases import Alive
from tracefactory.store.requests import RequestStore
from tracefactory.store.stages import ShardRecord, StageFolder, StoredInput, rows_digest
from tracefactory.verification.pool import VerifierPool

Record = Mapping[str, Any]
"""A completion as the request store keeps it: `request`, `completion`, `cost` when paid, and the `run` that paid."""

FATAL = frozenset({"auth", "not_found"})  # failures of the endpoint, not of a request


class Completer(Protocol):
    """What answers requests: a model's client, or models in this process."""

    async def complete(self, request: ChatRequest) -> Completion:
        """Return the completion.

        Raises:
            RequestFailed: when there is none.
        """
        ...


class Closing(Protocol):
    """What a worker keeps until it ends."""

    async def close(self) -> None: ...


Kept = TypeVar("Kept", bound=Closing)


class Interrupted(Exception):  # noqa: N818
    """A shard that stopped because the run is being drained; what it had paid for is stored."""


@dataclass(frozen=True)
class WorkerSetup:
    """All a worker needs to know. `environ` holds just the variables that the pipeline's models name."""

    pipeline: Pipeline
    keys: Mapping[str, str]
    root: Path
    run_id: str
    environ: Mapping[str, SecretStr] = field(default_factory=dict, repr=False)

    @property
    def log_dir(self) -> Path:
        return self.root / "runs" / self.run_id / "logs"


class Worker:
    """Runs shards of any stage of one pipeline."""

    def __init__(self, setup: WorkerSetup, verifier_processes: int, placement: Placement) -> None:
        self.setup = setup
        self.placement = placement
        self.verifier_processes = verifier_processes
        self.pipeline = setup.pipeline
        self.requests = RequestStore(setup.root)
        self.draining = False
        self.numbers: defaultdict[str, defaultdict[str, float]] = defaultdict(lambda: defaultdict(float))
        self._alive = Alive(setup.root, setup.run_id)
        self._clients: dict[str, ChatClient] = {}
        self._slots: dict[str, asyncio.Semaphore] = {}
        self._paying: dict[str, asyncio.Future[Record]] = {}
        self._verifiers: VerifierPool | None = None
        self._kept: dict[str, Closing] = {}

    def folder(self, stage_id: str) -> StageFolder:
        stage = self.pipeline.stage(stage_id)
        return StageFolder(self.setup.root, stage_id, self.setup.keys[stage_id], stage.op.gives)

    async def run_shard(self, stage_id: str, index: int, count: int) -> ShardRecord | None:
        """Run one shard, or find it done from the same inputs. None means that the run is being drained."""
        stage, folder = self.pipeline.stage(stage_id), self.folder(stage_id)
        op = stage.op
        assert isinstance(op, ShardOp)
        if self.draining:
            return None
        rows = {source: self.folder(source).read_shard(index, count) for source in stage.inputs}
        inputs = {source: rows_digest(found) for source, found in rows.items()}
        live = self.numbers[stage_id]
        live["shards"] += 1
        done = folder.shard_record(index, count)
        if done is not None and done.inputs == inputs and not done.tally.retryable:
            return done
        bounds = op.at_most(stage, self.pipeline, [*chain(*rows.values())])
        at_most = sum(one.requests for one in bounds.values())
        live["at_most"] += at_most
        try:
            result = await op.run(stage, Inputs(rows), self)
        except Interrupted:
            return None
        if bounds:
            live["at_most"] += result.numbers.get("requests", 0) - at_most
        return folder.write_shard(self.setup.run_id, index, count, inputs, result)

    async def run_whole(self, stage_id: str, shards: int | None, inputs: Mapping[str, str]) -> list[ShardRecord]:
        """Run a stage that needs all its input at once; `inputs` are the digests of the input stages."""
        stage, folder = self.pipeline.stage(stage_id), self.folder(stage_id)
        op = stage.op
        assert isinstance(op, WholeOp)
        sources = {source: StoredInput(self.folder(source)) for source in stage.inputs}
        result = op.run_whole(stage, sources, shards, self)
        folder.reopen(result.shards)
        run_id = self.setup.run_id
        return [folder.write_shard(run_id, i, result.shards, inputs, one) for i, one in enumerate(result.results)]

    async def complete(
        self, model_name: str, requests: Sequence[ChatRequest], stage_id: str, client: Completer | None = None
    ) -> list[Record | RequestFailed]:
        """Return a completion for every request, in order: from the store, or paid for and stored as it arrives.

        A request that fails is returned as its failure and costs its siblings nothing. When the run is being drained,
        what is in flight is awaited and stored before `Interrupted` is raised. `client` answers in place of the model's
        own client; the slots and prices are the model's.
        """
        stored = self.requests.get(request.key for request in requests)
        missing = {request.key: request for request in requests if request.key not in stored}
        self.numbers[stage_id]["done"] += len(requests) - len(missing)
        outcomes = await asyncio.gather(
            *(self._pay(model_name, request, stage_id, client) for request in missing.values()), return_exceptions=True
        )
        came: dict[str, Record | RequestFailed] = {}
        for key, outcome in zip(missing, outcomes, strict=True):
            if isinstance(outcome, BaseException) and not isinstance(outcome, RequestFailed):
                raise outcome
            came[key] = outcome
        return [came[one.key] if one.key in came else stored[one.key] for one in requests]

    async def _pay(self, model_name: str, request: ChatRequest, stage_id: str, client: Completer | None) -> Record:
        if (running := self._paying.get(request.key)) is not None:
            return await asyncio.shield(running)
        if request.key in self.requests:  # another shard paid for it since the store was read
            return self.requests.get([request.key])[request.key]
        async with self._paying_for(request.key) as paid, self._slot(model_name):
            if self.draining:
                raise Interrupted
            live = self.numbers[stage_id]
            live["in_flight"] += 1
            try:
                completion = await (client or self.client(model_name)).complete(request)
            except RequestFailed as failed:
                if failed.kind in FATAL:
                    self.drain()  # every other request would fail alike
                    raise RunError(f"{stage_id}: {model_name} refuses every request: {failed.message}") from failed
                raise
            finally:
                live["in_flight"] -= 1
            cost = self.pipeline.models[model_name].cost(completion)
            record = {
                "request": request.model_dump(mode="json"),
                "completion": completion.model_dump(mode="json"),
                "cost": cost,
                "run": self.setup.run_id,
            }
            await self.requests.put(request.key, record)
            paid.set_result(record)
        live["done"] += 1
        live["requests"] += 1
        live["prompt_tokens"] += completion.prompt_tokens
        live["completion_tokens"] += completion.completion_tokens
        live["cost"] += cost
        return record

    def client(self, model_name: str, served_as: tuple[str, ModelSpec] | None = None) -> ChatClient:
        """Return the one client of a model; its endpoint starts with the first request.

        `served_as` (what for, and how) gives a client of its own to a model that is served otherwise than declared.
        """
        name = model_name if served_as is None else f"{model_name}-{served_as[0]}"
        if name not in self._clients:
            spec = self.pipeline.models[model_name] if served_as is None else served_as[1]
            self._clients[name] = ChatClient.connect(spec, self.setup.log_dir / name, self.where)
        return self._clients[name]

    def keep(self, name: str, make: Callable[[], Kept]) -> Kept:
        """Return what is filed under `name`: made when it is first asked for, and closed with the worker."""
        if name not in self._kept:
            self._kept[name] = make()
        return cast(Kept, self._kept[name])

    @property
    def where(self) -> Where:
        environ = {name: secret.get_secret_value() for name, secret in self.setup.environ.items()}
        root, servers = self.pipeline.project.root, self.setup.root / "servers"
        return Where(root=root, environ=environ, placement=self.placement, servers=servers)

    @property
    def verifiers(self) -> VerifierPool:
        if self._verifiers is None:
            self._verifiers = VerifierPool(workers=self.verifier_processes)
        return self._verifiers

    def secret(self, value: EnvStr) -> SecretStr:
        """Return the value of an "env:NAME" parameter."""
        return SecretStr(value.resolve(self.where.environ))

    def progress(self) -> dict[str, dict[str, float]]:
        """Return what was done so far by stage: requests, tokens, cost, requests in flight."""
        return {stage: dict(numbers) for stage, numbers in self.numbers.items()}

    def notices(self) -> dict[str, str]:
        """Return by model what a person waiting for it should know."""
        return {name: client.notice for name, client in self._clients.items() if client.notice}

    def drain(self) -> None:
        """Send no further requests; those in flight are awaited and stored."""
        self.draining = True

    async def close(self) -> None:
        for one in (*self._clients.values(), *self._kept.values()):
            await one.close()
        if self._verifiers is not None:
            self._verifiers.close()
        self.requests.close()
        self._alive.close()

    def _slot(self, model_name: str) -> asyncio.Semaphore:
        if model_name not in self._slots:
            spec: ModelSpec = self.pipeline.models[model_name]
            self._slots[model_name] = asyncio.Semaphore(spec.concurrency)
        return self._slots[model_name]

    @asynccontextmanager
    async def _paying_for(self, key: str) -> AsyncIterator[asyncio.Future[Record]]:
        """Let others who want the same request wait for this one instead of paying again."""
        future: asyncio.Future[Record] = asyncio.get_running_loop().create_future()
        self._paying[key] = future
        try:
            yield future
        except BaseException as error:
            future.set_exception(error)
            future.exception()  # nobody may be waiting; mark it as seen
            raise
        finally:
            del self._paying[key]
