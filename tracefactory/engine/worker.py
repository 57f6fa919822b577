"""The worker that runs shards, in this process (inline executor) or in a Ray actor.

A worker owns resources that are expensive to start (clients, model endpoints, verifier processes, the request store)
and starts them when a shard first needs them.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from pydantic import SecretStr

from tracefactory.core.environment import Environment, EnvStr
from tracefactory.core.errors import Interrupted, RunError, RunStopped
from tracefactory.core.model import ChatRequest, Completion, ModelSpec, RequestFailed
from tracefactory.core.pipeline import Pipeline
from tracefactory.core.plugins import activate
from tracefactory.core.prices import Price
from tracefactory.core.rows import Kind
from tracefactory.core.spans import Span
from tracefactory.core.stage import Answer, Completer, Kept, Record, Work, stage_of
from tracefactory.engine.backlog import Backlog
from tracefactory.engine.batching import Batches
from tracefactory.engine.canaries import Canaries
from tracefactory.engine.control_tokens import PromptCheck
from tracefactory.engine.failing import Failing
from tracefactory.engine.identity import rows_of
from tracefactory.engine.loaded import LoadedModels
from tracefactory.engine.retry import LeftFailures
from tracefactory.engine.shards import ShardJob, work_on_columns, work_on_rows, write_decided
from tracefactory.engine.sources import read_source
from tracefactory.engine.spending import Spending, bytes_at_most
from tracefactory.engine.stored import stored_answers, stored_record, usable_records
from tracefactory.serving.status import ModelStatus
from tracefactory.serving.vllm.replica import Placement
from tracefactory.store.claims import Claim, Claims
from tracefactory.store.leases import RunLock
from tracefactory.store.requests import RequestStore
from tracefactory.store.stages import OWED, ShardRecord, input_token, to_retry
from tracefactory.verification.pool import VerifierPool

if TYPE_CHECKING:
    from tracefactory.serving.client import ChatClient

CLAIM_POLL_S = 0.3


@dataclass(frozen=True)
class WorkerSetup:
    """The setup of a worker.

    `environ` has only the variables that the pipeline's models name. `retry` says which failed rows are tried again
    (see `store.stages.to_retry`); without `sends`, nothing is sent at all.
    """

    pipeline: Pipeline
    keys: Mapping[str, str]
    root: Path
    run_id: str
    environ: Mapping[str, SecretStr] = field(default_factory=dict, repr=False)
    retry: str = OWED
    sends: bool = True

    @property
    def log_dir(self) -> Path:
        return self.root / "runs" / self.run_id / "logs"


class Worker:
    """Runs shards of the stages of one pipeline, and provides the `Services` of these stages."""

    def __init__(self, setup: WorkerSetup, verifier_processes: int, placement: Placement) -> None:
        activate(*setup.pipeline.project_plugins)
        self.setup = setup
        self.placement = placement
        self.verifier_processes = verifier_processes
        self.pipeline = setup.pipeline
        self.state_dir = setup.root
        self.run_id = setup.run_id
        self.keys = setup.keys
        self.requests = RequestStore(setup.root)
        self.draining = False
        self.stopped: RunError | None = None  # why this run cannot go on
        self.numbers: defaultdict[str, defaultdict[str, float]] = defaultdict(lambda: defaultdict(float))
        self._lock = RunLock(setup.root, setup.run_id)
        self._loaded = LoadedModels(self.pipeline.models, setup.log_dir, lambda: self.environment)
        self._backlogs = {name: Backlog(spec.requests_at_once) for name, spec in setup.pipeline.models.items()}
        self._in_flight: dict[str, asyncio.Future[Record]] = {}
        self._prompts = PromptCheck(self.pipeline)
        self._verifiers: VerifierPool | None = None
        self._claims: Claims | None = None
        folder = (setup.pipeline, setup.root, setup.run_id)
        self._batches = Batches(*folder, self.requests, self._keep, self.client, lambda: self.environment)
        self.spending = Spending(*folder, lambda: self.claims, lambda: self.draining, self._batches)
        self._canaries = Canaries(setup.root / "canaries")
        self._left = LeftFailures(setup.retry)
        self._failing = Failing(self.pipeline, self._left, self.stop)

    def job(self, stage_id: str, index: int, layouts: Mapping[str, int], inputs: Mapping[str, str]) -> ShardJob:
        """Return the job for one shard; `layouts` has the numbers of shards of this stage and the stages above it."""
        rows = rows_of(stage_id, self.pipeline, self.setup.root, self.setup.keys, layouts)
        return ShardJob(self.pipeline.stage(stage_id), self.pipeline, rows, index, self.run_id, inputs)

    async def run_shard(self, stage_id: str, index: int, layouts: Mapping[str, int]) -> ShardRecord | None:
        """Run one shard unless it is done with the same inputs; return None when the run is being drained."""
        if self.draining:
            if self.stopped is not None:
                raise self.stopped
            return None
        job, count = self.job(stage_id, index, layouts, {}), layouts[stage_id]
        first = job.op.asks(job.stage, self.pipeline)
        if first is not None and (held := self.pipeline.models[first].worker_gpus):
            self._loaded.hold(first, held)
        if any(self.pipeline.models[name].gpus_held for name in job.stage.model_names):
            self.spending.meter(self._loaded.gpus, self.stop)
        span = Span.of(index, count)
        inputs = {one.folder.stage_id: input_token(one.folder, one.shards, span) for one in job.rows.inputs}
        job = replace(job, inputs=inputs)
        live = self.numbers[stage_id]
        live["shards"] += 1
        done = job.rows.folder.shard_record(index, count)
        if done is not None and done.inputs == inputs and not to_retry(done.tally, self.setup.retry):
            self._failing.add_finished(stage_id, done.tally)
            return done
        self._left.add(job.rows.folder, index, count)
        if job.op.work(job.stage, self.pipeline) is Work.COLUMNS:
            return await asyncio.to_thread(work_on_columns, job)
        try:
            # Of a model with batches, all requests of a shard are to be in its batches, so that all are made now.
            in_batches = first is not None and self.pipeline.models[first].batching is not None
            backlog = None if first is None or in_batches else self._backlogs[first]
            return await work_on_rows(job, self, live, partial(self._failing.add_rows, shard=index), backlog)
        except Interrupted:
            if self.stopped is not None:
                raise self.stopped from None
            return None

    async def run_whole(
        self, stage_id: str, layouts: Mapping[str, int], inputs: Mapping[str, str], reports: Sequence[Any] = ()
    ) -> list[ShardRecord]:
        """Run a source, a stage that decides from the columns of all shards, or the last step of a release.

        Args:
            stage_id: the stage.
            layouts: the numbers of shards of the stages above it.
            inputs: the digests of its input stages.
            reports: the results of `write_range` for each range of a release.
        """
        job = self.job(stage_id, 0, {**layouts, stage_id: 1}, inputs)
        work = job.op.work(job.stage, self.pipeline)
        if work is Work.SOURCE:
            made = job.op.read(job.stage, self.pipeline, self.environment)
            return await asyncio.to_thread(read_source, job, made, self.pipeline.run.shards)
        job.rows.folder.reopen(1)
        if work is Work.RELEASE:
            decided = await asyncio.to_thread(job.op.release, job.stage, job.input_rows, reports, self)
            return [write_decided(job, decided)]
        return [await asyncio.to_thread(work_on_columns, job)]

    async def write_range(self, stage_id: str, layouts: Mapping[str, int], number: int, span: Span) -> Any:
        """Write one range of a release and return the stage's report."""
        job = self.job(stage_id, 0, {**layouts, stage_id: 1}, {})
        return await asyncio.to_thread(job.op.write_range, job.stage, job.input_rows, number, span, self)

    async def complete(
        self, model: str, requests: Sequence[ChatRequest], stage_id: str, client: Completer | None = None
    ) -> list[Answer]:
        """Return an answer for every request, in order, from the store or from the model; new completions are stored.

        A failed request is returned as its failure and does not affect the others. When the run is being drained,
        requests in flight are finished and stored before `Interrupted` is raised. `client` replaces the model's own
        client, with the slots and prices of the model.

        Raises:
            RunError: when the run cannot go on, e.g. without credit; requests in flight are stored before.
        """
        stored = stored_answers(self.requests, requests)
        missing = {request.key: request for request in requests if request.key not in stored}
        refused = self._prompts.refused(model, missing)
        missing = {key: request for key, request in missing.items() if key not in refused}
        if stored and missing and client is None:
            self.client(model).has_answered = True
        self.numbers[stage_id]["done"] += len(requests) - len(missing)
        self._failing.add_stored(stage_id, len(stored))
        if missing and self.setup.sends and self._loaded.is_own(model, client):
            await self._check_first_answers(model, list(missing.values()), stage_id)
        paying = (
            self._failing.counted(stage_id, request, self._pay(model, request, stage_id, client))
            for request in missing.values()
        )
        outcomes = await asyncio.gather(*paying, return_exceptions=True)
        if self.stopped is not None:
            raise self.stopped
        answers: dict[str, Answer] = {**stored, **refused}
        for key, outcome in zip(missing, outcomes, strict=True):
            if isinstance(outcome, BaseException) and not isinstance(outcome, RequestFailed):
                raise outcome
            answers[key] = outcome
        return [answers[request.key] for request in requests]

    async def _check_first_answers(self, model: str, requests: Sequence[ChatRequest], stage_id: str) -> None:
        """Run the canary of a model and stage; a fault stops the run."""
        op = stage_of(self.pipeline.stage(stage_id))
        spec, samples = self.pipeline.models[model], op.makes is Kind.TRACES and not op.judges

        client, stage = self.client(model), (stage_id, self.keys[stage_id])
        at_once = self._batches.at_once(model, client, self.environment)
        pay = partial(self._pay, model, stage_id=stage_id, client=at_once)
        ask = partial(self.spending.answer, model, client, self.environment)
        try:
            await self._canaries.check(model, spec, stage, requests, pay, ask, samples=samples)
        except RunStopped as fault:
            self.stop(fault)
            raise

    def left_failure(self, stage_id: str, row_id: str) -> RequestFailed | None:
        return self._left.rows.get((stage_id, row_id))

    def stored(self, keys: Sequence[str]) -> Mapping[str, Record]:
        return usable_records(self.requests.get(keys))

    async def _pay(self, model: str, request: ChatRequest, stage_id: str, client: Completer | None) -> Record:
        if (failure := self._left.requests.get(request.key)) is not None:
            raise failure
        if not self.setup.sends:
            raise RequestFailed("not_sent", "the run sends no requests", attempts=0, retryable=True)
        if (running := self._in_flight.get(request.key)) is not None:
            return await asyncio.shield(running)
        # Another shard may have paid for it since the store was read.
        if request.key in self.requests and (stored := stored_record(self.requests, request)):
            return stored
        async with self._share_request(request.key) as paid:
            while True:
                async with self._backlogs[model].slot():
                    if self.draining:
                        raise Interrupted
                    claim = self.claims.take(request.key)
                    if claim is not Claim.HELD:
                        try:
                            found = stored_record(self.requests, request) if claim is Claim.CHECK else None
                            record = found or await self._send(model, request, stage_id, client)
                        finally:
                            self.claims.release(request.key)
                        paid.set_result(record)
                        return record
                self.numbers[stage_id]["elsewhere"] += 1  # another process is sending it, or has died a while ago
                try:
                    await asyncio.sleep(CLAIM_POLL_S)
                finally:
                    self.numbers[stage_id]["elsewhere"] -= 1

    async def _send(self, model: str, request: ChatRequest, stage_id: str, client: Completer | None) -> Record:
        """Send a request and store its completion; a completion that was paid for is stored in any case."""
        live, own = self.numbers[stage_id], self._loaded.is_own(model, client)
        batched = own and self.pipeline.models[model].batching is not None
        # The results of a batch stay at the provider until they are stored.
        async with self.requests.reserve(0 if batched else bytes_at_most(request)):
            try:
                if own:
                    client = self._batches.completer(model, self.client(model), self.environment)
                async with self.spending.request(model, request, self.environment) as paid:
                    live["in_flight"] += 1
                    try:
                        completion = await cast(Completer, client).complete(request)
                    finally:
                        live["in_flight"] -= 1
                    if completion.batched and (found := stored_record(self.requests, request)) is not None:
                        paid.release()  # who stored it has counted it
                        return found
                    cost, price = paid.cost(completion)
                    # It is stored first: if the ledger cannot be written, its worst case stays reserved.
                    record = await self._put(request, completion, cost, price)
                    paid.settle(completion)
            except RunError as error:
                self.stop(type(error)(f"{stage_id}: {error}"))
                raise cast(RunError, self.stopped) from error
        live["done"] += 1
        live["requests"] += 1
        live["prompt_tokens"] += completion.prompt_tokens
        live["completion_tokens"] += completion.completion_tokens
        live["cost"] += cost or 0.0
        live["unpriced"] += cost is None
        return record

    async def _put(self, request: ChatRequest, completion: Completion, cost: float | None, price: Price) -> Record:
        record = {
            "request": request.model_dump(mode="json"),
            "completion": completion.model_dump(mode="json"),
            "cost": cost,
            "price": price.stored(),
            "run": self.run_id,
        }
        await self.requests.put(request.key, record, request.near)
        return record

    async def _keep(self, model: str, request: ChatRequest, completion: Completion) -> None:
        """Store the completion of a batch that no request waits for any more."""
        cost, price = self.spending.spent(model, request, completion, self.environment)
        await self._put(request, completion, cost, price)

    def stop(self, why: RunError) -> None:
        """Send no further requests, and fail with `why` when those in flight are stored."""
        self.stopped = self.stopped or why
        self.drain()

    def client(self, model: str, served_as: tuple[str, ModelSpec] | None = None) -> ChatClient:
        """Return the client of a model; its endpoint is started by the first request."""
        return self._loaded.client(model, served_as)

    def keep(self, name: str, make: Callable[[], Kept], models: Collection[str]) -> Kept:
        return self._loaded.keep(name, make, models)

    async def release(self, model: str) -> None:
        """End the clients and servers of a model, and what of it is in memory; a later request starts them again."""
        await self._loaded.release(model)

    @cached_property
    def environment(self) -> Environment:
        environ = {name: secret.get_secret_value() for name, secret in self.setup.environ.items()}
        root, servers = self.pipeline.project.root, self.setup.root / "servers"
        return Environment(root=root, environ=environ, placement=self.placement, servers=servers)

    @property
    def verifiers(self) -> VerifierPool:
        if self._verifiers is None:
            self._verifiers = VerifierPool(workers=self.verifier_processes, allow=self.pipeline.sandbox.allow)
        return self._verifiers

    def secret(self, value: EnvStr) -> SecretStr:
        return SecretStr(value.resolve(self.environment.environ))

    def progress(self) -> dict[str, dict[str, float]]:
        """Return live numbers by stage: requests, tokens, cost, requests in flight."""
        return {stage: dict(numbers) for stage, numbers in self.numbers.items()}

    def events(self) -> list[dict[str, Any]]:
        """Return the failures since the last call, for the log of the run."""
        return self._failing.events.take()

    def models(self) -> dict[str, ModelStatus]:
        """Return the state of every model that was asked; a store that cannot be written holds back all of them."""
        blocked, batches = self.requests.blocked, self._batches
        return {
            name: one._replace(notice=blocked or one.notice or batches.notice(name))
            for name, one in self._loaded.status().items()
        }

    def drain(self) -> None:
        """Send no further requests; those in flight are finished and stored."""
        self.draining = self.requests.draining = True
        self._loaded.drain()
        self._batches.drain()

    async def close(self) -> None:
        """End everything that was started.

        Raises:
            RunError: when something went wrong that no request has reported, e.g. a difference in a batch's bill.
        """
        try:
            await self._batches.close()
        finally:
            await self._loaded.close()
            await self.spending.close()
            if self._verifiers is not None:
                self._verifiers.close()
            if self._claims is not None:
                self._claims.close()
            self.requests.close()
            self._lock.close()

    @property
    def claims(self) -> Claims:
        """The claims of this process on requests in flight; made by the first request that is sent."""
        if self._claims is None:
            self._claims = Claims(self.requests.folder / "claims")
        return self._claims

    @asynccontextmanager
    async def _share_request(self, key: str) -> AsyncIterator[asyncio.Future[Record]]:
        """Let other callers with the same request wait for this one instead of paying again."""
        future: asyncio.Future[Record] = asyncio.get_running_loop().create_future()
        self._in_flight[key] = future
        try:
            yield future
        except BaseException as error:
            future.set_exception(error)
            future.exception()  # mark as retrieved: there may be no waiter
            raise
        finally:
            del self._in_flight[key]
