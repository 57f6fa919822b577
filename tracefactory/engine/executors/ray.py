"""The Ray executor: Ray Core actors, one per model and one per CPU, stateless.

Ray is disposable. An actor that dies is started again and its shards are run again; what they had paid for is in the
request store. A driver that dies takes the local cluster with it; the next run goes on from the store.
"""

from __future__ import annotations

import asyncio
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayTaskError

from tracefactory.core.errors import UserError
from tracefactory.core.pipeline import StageSpec
from tracefactory.core.spans import Span
from tracefactory.core.stage import stage_of
from tracefactory.engine.executors.base import MODEL_HOST, MODEL_SHARDS, Layouts, host_of
from tracefactory.engine.worker import Worker, WorkerSetup
from tracefactory.serving.vllm.replica import LOOPBACK, PlacedReplica, Replica, ReplicaState, ServerPlan
from tracefactory.store.stages import ShardRecord

RESTARTS = 20  # per actor; a worker that dies more often than this has a fault that another start will not mend
PROGRESS_S = 2.0
STOP_S = 20.0  # for a model server to end by itself; then its actor is killed, and the server with it


@dataclass
class _Member:
    """One actor, how many shards it has, and how many GPUs it may still have to wait for."""

    actor: Any
    room: asyncio.Semaphore
    busy: int = field(default=0)
    waits_for: int = field(default=0)


class RayExecutor:
    """Runs shards on actors: a model's shards on that model's actor, the others on the least busy CPU actor."""

    def __init__(self, setup: WorkerSetup) -> None:
        self.setup = setup
        self._members: defaultdict[str, list[_Member]] = defaultdict(list)
        self._draining = False

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
                continue  # a busy or restarting actor has no numbers now; its shards tell of a lasting fault
            for stage, numbers in answer.items():
                for name, number in numbers.items():
                    total[stage][name] += number
        return total

    async def notices(self) -> Mapping[str, str]:
        found: dict[str, str] = {}
        hosts = {host: members for host, members in self._members.items() if host != "cpu"}
        asked = [(host, one, one.actor.notices.remote()) for host, members in hosts.items() for one in members]
        answers = (asyncio.wait_for(answer, PROGRESS_S) for _, _, answer in asked)
        for (host, one, _), answer in zip(asked, await asyncio.gather(*answers, return_exceptions=True), strict=True):
            if not isinstance(answer, BaseException):
                one.waits_for = 0
                found |= answer
            elif one.waits_for:
                found[host.removeprefix(MODEL_HOST)] = f"waits for a node with {one.waits_for} free GPUs"
        return found

    async def drain(self) -> None:
        self._draining = True
        for members in self._members.values():
            await asyncio.gather(*(member.actor.drain.remote() for member in members), return_exceptions=True)

    async def close(self) -> None:
        for members in self._members.values():
            await asyncio.gather(*(member.actor.close.remote() for member in members), return_exceptions=True)
        if ray.is_initialized():
            ray.shutdown()

    async def _call(self, stage: StageSpec[Any], method: str, *arguments: Any) -> Any:
        members = self._hosts(stage)
        member = min(members, key=lambda one: one.busy)
        member.busy += 1
        try:
            async with member.room:
                return await getattr(member.actor, method).remote(*arguments)
        except RayTaskError as error:
            raise error.cause from error
        finally:
            member.busy -= 1

    def _hosts(self, stage: StageSpec[Any]) -> list[_Member]:
        """Return the actors that a stage's shards run on, started when first asked for.

        Raises:
            UserError: when this machine, being the whole cluster, does not have the GPUs for them.
        """
        host = host_of(stage, self.setup.pipeline)
        if not self._members[host]:
            address = self.setup.pipeline.run.ray_address
            _connect(address)
            model = stage_of(stage).asks(stage, self.setup.pipeline)
            spec = None if model is None else self.setup.pipeline.models[model]
            # An actor that the cluster has no CPU for would wait for ever, and its shards with it.
            cpus = max(1, int(ray.cluster_resources().get("CPU", 1)))
            workers = min(self.setup.pipeline.run.workers or cpus, cpus) if spec is None else spec.workers
            gpus = 0 if spec is None else spec.worker_gpus
            _check_gpus(address, str(model), workers * gpus)
            actor = ray.remote(
                num_cpus=1 if spec is None else 0,
                num_gpus=gpus,
                max_restarts=RESTARTS,
                max_task_retries=-1,
                max_concurrency=4 * MODEL_SHARDS,
                scheduling_strategy="SPREAD" if workers > 1 else "DEFAULT",
            )(Worker)
            for _ in range(workers):
                room = asyncio.Semaphore(1 if spec is None else MODEL_SHARDS)
                worker = actor.remote(self.setup, verifier_processes=1, placement=RayPlacement(address))
                self._members[host].append(_Member(worker, room, waits_for=gpus))
        return self._members[host]


class RayPlacement:
    """Places model servers by Ray: an actor that holds the GPUs of one replica owns its server, on the actor's node."""

    def __init__(self, address: str | None) -> None:
        self.address = address

    async def place(self, plan: ServerPlan, log_file: Path) -> PlacedReplica:
        """Ask Ray for the actor; Ray finds a node with that many free GPUs, which may take a while.

        Raises:
            UserError: when this machine, being the whole cluster, does not have that many GPUs.
        """
        _connect(self.address)
        _check_gpus(self.address, plan.name, plan.gpus)
        actor = ray.remote(num_cpus=0, num_gpus=plan.gpus, max_restarts=plan.restarts)(_ReplicaActor)
        # Only a cluster of several nodes needs servers that listen beyond this machine.
        return _RayReplica(plan, actor.remote(plan, log_file, loopback=self.address is None))


class _ReplicaActor:
    """Owns one server process on its node; Ray starts it again, elsewhere if need be, when the node dies."""

    def __init__(self, plan: ServerPlan, log_file: Path, loopback: bool) -> None:
        self.plan, self.log_file = plan, log_file
        self.host = LOOPBACK if loopback else ray.util.get_node_ip_address()
        self.replica: Replica | None = None

    async def state(self) -> ReplicaState:
        if self.replica is None:
            self.replica = Replica(self.plan, self.log_file, host=self.host)
        return await self.replica.state()

    async def stop(self) -> None:
        if self.replica is not None:
            await self.replica.stop()


class _RayReplica:
    """What the endpoint sees of such an actor."""

    def __init__(self, plan: ServerPlan, actor: Any) -> None:
        self.plan, self.actor = plan, actor
        self._asked: Any = None

    async def state(self) -> ReplicaState:
        if self._asked is None:
            self._asked = asyncio.ensure_future(self.actor.state.remote())
        done, _ = await asyncio.wait([self._asked], timeout=PROGRESS_S)
        if not done:
            return ReplicaState(text=f"waits for a node with {self.plan.gpus} free GPUs, or for that node's answer")
        asked, self._asked = self._asked, None
        try:
            return asked.result()  # type: ignore[no-any-return]
        except ActorUnavailableError:
            return ReplicaState(text="restarts on another node")
        except ActorDiedError as error:
            return ReplicaState(gone=f"{self.plan.name}: its node died too often ({error})")
        except RayTaskError as error:
            raise error.cause from error

    async def stop(self) -> None:
        if self._asked is not None:
            self._asked.cancel()
        await asyncio.wait([asyncio.ensure_future(self.actor.stop.remote())], timeout=STOP_S)
        ray.kill(self.actor)


def _check_gpus(address: str | None, what: str, gpus: int) -> None:
    """Refuse what this machine, when it is the whole cluster, will never have; a cluster may still grow."""
    has = int(ray.cluster_resources().get("GPU", 0))
    if address is None and has < gpus:
        raise UserError(f"{what} needs {gpus} GPUs, and this machine has {has}")


def _connect(address: str | None) -> None:
    if ray.is_initialized():
        return
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # a zero-GPU actor keeps its environment
    ray.init(
        address=address,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        configure_logging=False,
    )
