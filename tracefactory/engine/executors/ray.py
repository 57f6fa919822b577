"""The Ray executor: Ray Core actors, one or more per model and one per CPU, stateless.

No state is lost with Ray. When an actor dies, Ray restarts it, and its shards are run again on whichever actor is free;
their paid completions are in the request store. When the driver dies, its actors end with it, and the next run
continues from the store.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import ray
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayTaskError

from tracefactory.core.errors import Interrupted, RunError, RunStopped
from tracefactory.core.pipeline import Pipeline, StageSpec
from tracefactory.core.spans import Span
from tracefactory.core.stage import stage_of
from tracefactory.engine.executors.base import MODEL_HOST, Layouts, host_of, shards_at_once
from tracefactory.engine.executors.ray_cluster import check_gpus, connect, head_lost, is_cluster
from tracefactory.engine.executors.ray_nodes import check_nodes, check_this_machine, packages_of
from tracefactory.engine.executors.ray_servers import RayPlacement
from tracefactory.engine.process import settle
from tracefactory.engine.shards import MODEL_SHARDS
from tracefactory.engine.worker import Worker, WorkerSetup
from tracefactory.serving.status import ModelStatus
from tracefactory.store.stages import ShardRecord

RESTARTS = 20  # per actor; a worker that dies more often has a fault that restarting does not fix
PROGRESS_S = 2.0
AWAY_S = 2.0  # that an actor which was lost is not asked again: it restarts, or waits for a free CPU
HEAD_S = 45.0  # without an answer of the head; after a minute without it, Ray ends processes in its own way
DRAIN_S = 10.0  # for actors to hear that they send nothing more
CLOSE_S = 60.0  # for actors to store responses and to stop their servers; then they are killed
CONTINUE = "what was paid for is stored: run the same command when the cluster is up again"


@dataclass
class _Member:
    """One actor, its number of shards, the GPUs that it may be waiting for, and until when it is not asked."""

    actor: Any
    room: asyncio.Semaphore
    busy: int = field(default=0)
    waits_for: int = field(default=0)
    away_until: float = field(default=0.0)


class _Actor(Worker):
    """A worker in a process of its own."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        settle()
        super().__init__(*arguments, **named)


class RayExecutor:
    """Runs shards on actors: a model's shards on the actors of the model, others on the least busy CPU actor."""

    def __init__(self, setup: WorkerSetup) -> None:
        self.setup = setup
        self._cluster = is_cluster(setup.pipeline.run)
        self._ready = self._draining = False
        self._lost: asyncio.Task[None] | None = None  # ends when the head is lost
        self._members: dict[str, list[_Member]] = {}
        self._died = ""  # what Ray reported of the last actor that died too often

    async def run_shard(self, stage: StageSpec[Any], index: int, layouts: Layouts) -> ShardRecord | None:
        return await self._call(stage, "run_shard", stage.id, index, dict(layouts))  # type: ignore[no-any-return]

    async def run_whole(
        self, stage: StageSpec[Any], layouts: Layouts, inputs: Mapping[str, str], reports: Sequence[Any] = ()
    ) -> list[ShardRecord]:
        arguments = (stage.id, dict(layouts), dict(inputs), list(reports))
        return await self._call(stage, "run_whole", *arguments)  # type: ignore[no-any-return]

    async def write_range(self, stage: StageSpec[Any], layouts: Layouts, number: int, span: Span) -> Any:
        return await self._call(stage, "write_range", stage.id, dict(layouts), number, span)

    async def progress(self) -> Mapping[str, Mapping[str, float]]:
        actors = [member.actor for members in self._members.values() for member in members]
        total: defaultdict[str, defaultdict[str, float]] = defaultdict(lambda: defaultdict(float))
        asked = (asyncio.wait_for(actor.progress.remote(), PROGRESS_S) for actor in actors)
        answers = await asyncio.gather(*asked, return_exceptions=True)
        for answer in answers:
            if isinstance(answer, BaseException):
                continue  # a busy or restarting actor has no numbers; its shards report permanent faults
            for stage, numbers in answer.items():
                for name, number in numbers.items():
                    total[stage][name] += number
        return total

    async def events(self) -> Sequence[Mapping[str, Any]]:
        everyone = [member for members in self._members.values() for member in members if not member.waits_for]
        answers = await _answers([member.actor.events.remote() for member in everyone], PROGRESS_S)
        return [one for answer in answers if isinstance(answer, list) for one in answer]

    async def models(self) -> Mapping[str, ModelStatus]:
        found: dict[str, ModelStatus] = {}
        hosts = {host: members for host, members in self._members.items() if host != "cpu"}
        asked = [(host, one, one.actor.models.remote()) for host, members in hosts.items() for one in members]
        answers = (asyncio.wait_for(answer, PROGRESS_S) for _, _, answer in asked)
        for (host, one, _), answer in zip(asked, await asyncio.gather(*answers, return_exceptions=True), strict=True):
            if not isinstance(answer, BaseException):
                one.waits_for = 0
                for name, status in answer.items():
                    before = found.get(name, ModelStatus())
                    found[name] = ModelStatus(status.notice or before.notice, _joined(before, status))
            elif one.waits_for:
                found[host.removeprefix(MODEL_HOST)] = ModelStatus(f"waits for a node with {one.waits_for} free GPUs")
        return found

    async def gpus(self) -> int:
        self._start()
        return int(ray.cluster_resources().get("GPU", 0))

    async def release(self, model: str) -> None:
        everyone = [member for members in self._members.values() for member in members]
        await _answers([member.actor.release.remote(model) for member in everyone if not member.waits_for])
        if self.setup.pipeline.models[model].worker_gpus:
            members = self._members.pop(f"{MODEL_HOST}{model}", [])
            await _answers([member.actor.close.remote() for member in members if not member.waits_for])
            for member in members:
                ray.kill(member.actor)

    async def drain(self) -> None:
        self._draining = True
        everyone = [member for members in self._members.values() for member in members]
        await _answers([member.actor.drain.remote() for member in everyone], DRAIN_S)

    async def close(self) -> None:
        lost = self._lost is not None and self._lost.done()
        everyone = [] if lost else [member for members in self._members.values() for member in members]
        # An actor that still waits for its GPUs has nothing to close, and would not answer.
        ends = await _answers([member.actor.close.remote() for member in everyone if not member.waits_for])
        if self._lost is not None:
            self._lost.cancel()
        if ray.is_initialized():
            ray.shutdown()
        for end in ends:  # of an actor that died, nothing is left to close
            if isinstance(end, RayTaskError) and isinstance(end.cause, RunError):
                raise end.cause from end

    async def _call(self, stage: StageSpec[Any], method: str, *arguments: Any) -> Any:
        """Call a method of an actor, and of another one when it is lost meanwhile.

        Raises:
            RunError: when all actors of the stage have died too often.
            Interrupted: when it is lost while the run is being drained.
        """
        members = self._hosts(stage)
        while members:
            now = time.monotonic()
            here = [one for one in members if one.away_until <= now]
            if not here:
                await asyncio.sleep(min(one.away_until for one in members) - now)
                continue
            member = min(here, key=lambda one: one.busy)
            member.busy += 1
            try:
                async with member.room:
                    answer = await self._answer(getattr(member.actor, method).remote(*arguments))
                    member.waits_for = 0
                    return answer
            except RayTaskError as error:
                raise error.cause from error
            except ActorUnavailableError:
                if self._draining:
                    raise Interrupted from None  # the restarted actor does not know of it
                member.away_until = time.monotonic() + AWAY_S
            except ActorDiedError as error:
                self._died = " ".join(str(error).split())[:1000]
                if member in members:
                    members.remove(member)
            finally:
                member.busy -= 1
        raise RunError(f"{stage.id}: its workers cannot be kept running: {self._died}")

    async def _answer(self, asked: Any) -> Any:
        """Return what an actor answers.

        Raises:
            RunStopped: when the head is lost meanwhile: Ray would wait for its answer forever.
        """
        if self._lost is None:
            self._lost = asyncio.create_task(head_lost(HEAD_S))
        call = asyncio.ensure_future(asked)
        try:
            await asyncio.wait([call, self._lost], return_when=asyncio.FIRST_COMPLETED)
        finally:
            lost = call.cancel()  # does nothing to an answer that is there
        if lost:
            raise RunStopped(f"the head of the Ray cluster has not answered for {HEAD_S:g} s; {CONTINUE}")
        return call.result()

    def _start(self) -> None:
        """Join or start the cluster and check its nodes; at the first call."""
        if not self._ready:
            if not self._cluster:
                check_this_machine(self.setup.pipeline)
            connect(self.setup.pipeline.run)
            if self._cluster:
                check_nodes(self.setup.root, packages_of(self.setup.pipeline))
            self._ready = True

    def _hosts(self, stage: StageSpec[Any]) -> list[_Member]:
        """Return the actors for a stage's shards; the first call starts them.

        Raises:
            UserError: when the cluster cannot be used, or is only this machine and has too few GPUs.
        """
        pipeline = self.setup.pipeline
        host = host_of(stage, pipeline)
        if host not in self._members:
            self._start()
            model = stage_of(stage).asks(stage, pipeline)
            spec = None if model is None else pipeline.models[model]
            # Without a free CPU in the cluster, an actor and its shards would wait forever.
            cpus = max(1, int(ray.cluster_resources().get("CPU", 1)))
            workers = min(pipeline.run.workers or cpus, cpus) if spec is None else spec.client_processes
            gpus = 0 if spec is None else spec.worker_gpus
            at_once = shards_at_once(host, _part(pipeline, 0, workers))
            check_gpus(str(model), workers * gpus, cluster=self._cluster)
            actor = ray.remote(
                num_cpus=1 if spec is None else 0,
                num_gpus=gpus,
                max_restarts=RESTARTS,
                max_task_retries=0,  # `_call` goes to another actor at once, the restarted one may wait for a CPU
                max_concurrency=max(4 * MODEL_SHARDS, 2 * at_once),
                scheduling_strategy="SPREAD" if workers > 1 else "DEFAULT",
            )(_Actor)
            self._members[host] = []
            for number in range(workers):
                room = asyncio.Semaphore(1 if spec is None else at_once)
                setup = self.setup if spec is None else replace(self.setup, pipeline=_part(pipeline, number, workers))
                worker = actor.remote(setup, verifier_processes=1, placement=RayPlacement(pipeline.run))
                self._members[host].append(_Member(worker, room, waits_for=gpus))
        return self._members[host]


def _part(pipeline: Pipeline, number: int, of: int) -> Pipeline:
    """Return the pipeline for one of several actors, with its part of the requests in flight of every served model."""
    models = {
        name: spec
        if spec.in_process
        else spec.model_copy(update={"concurrency": max(1, (spec.concurrency + number) // of)})
        for name, spec in pipeline.models.items()
    }
    return pipeline if of == 1 else pipeline.model_copy(update={"models": models})


def _joined(one: ModelStatus, other: ModelStatus) -> tuple[Any, ...]:
    """Return the states of servers that several actors ask, each server once."""
    found = {state.host: state for state in one.endpoints}
    for state in other.endpoints:
        before = found.get(state.host)
        found[state.host] = state if before is None else before.plus(state)
    return tuple(found.values())


async def _answers(asked: Sequence[Any], seconds: float = CLOSE_S) -> list[Any]:
    """Return what actors answered in time, exceptions too; what does not answer is left out."""
    answers = (asyncio.wait_for(one, seconds) for one in asked)
    made = await asyncio.gather(*answers, return_exceptions=True)
    return [one for one in made if not isinstance(one, TimeoutError)]
