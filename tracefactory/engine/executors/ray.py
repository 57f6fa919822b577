"""The Ray executor: Ray Core actors, one per model and one per CPU, stateless.

No state is lost with Ray. When an actor dies, it is restarted and its shards are run again; their paid completions are
in the request store. When the driver dies, the local cluster ends with it, and the next run continues from the store.
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

from tracefactory.core.errors import RunError, UserError
from tracefactory.core.pipeline import StageSpec
from tracefactory.core.spans import Span
from tracefactory.core.stage import stage_of
from tracefactory.engine.executors.base import MODEL_HOST, MODEL_SHARDS, Layouts, host_of, shards_at_once
from tracefactory.engine.worker import Worker, WorkerSetup
from tracefactory.serving.status import ModelStatus
from tracefactory.serving.vllm.replica import LOOPBACK, PlacedReplica, Replica, ReplicaState, ServerPlan
from tracefactory.store.stages import ShardRecord

RESTARTS = 20  # per actor; a worker that dies more often has a fault that restarting does not fix
PROGRESS_S = 2.0
STOP_S = 20.0  # for a model server to exit; then its actor and with it the server are killed


@dataclass
class _Member:
    """One actor, its number of shards, and the number of GPUs that it may be waiting for."""

    actor: Any
    room: asyncio.Semaphore
    busy: int = field(default=0)
    waits_for: int = field(default=0)


class RayExecutor:
    """Runs shards on actors: a model's shards on the actors of the model, others on the least busy CPU actor."""

    def __init__(self, setup: WorkerSetup) -> None:
        self.setup = setup
        self._members: defaultdict[str, list[_Member]] = defaultdict(list)

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
                    found[name] = ModelStatus(status.notice or before.notice, before.endpoints + status.endpoints)
            elif one.waits_for:
                found[host.removeprefix(MODEL_HOST)] = ModelStatus(f"waits for a node with {one.waits_for} free GPUs")
        return found

    async def drain(self) -> None:
        for members in self._members.values():
            await asyncio.gather(*(member.actor.drain.remote() for member in members), return_exceptions=True)

    async def close(self) -> None:
        actors = [member.actor for members in self._members.values() for member in members]
        ends = await asyncio.gather(*(actor.close.remote() for actor in actors), return_exceptions=True)
        if ray.is_initialized():
            ray.shutdown()
        for end in ends:  # of an actor that died, nothing is left to close
            if isinstance(end, RayTaskError) and isinstance(end.cause, RunError):
                raise end.cause from end

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
        """Return the actors for a stage's shards; the first call starts them.

        Raises:
            UserError: when the cluster is only this machine and has too few GPUs.
        """
        host = host_of(stage, self.setup.pipeline)
        if not self._members[host]:
            address = self.setup.pipeline.run.ray_address
            _connect(address)
            model = stage_of(stage).asks(stage, self.setup.pipeline)
            spec = None if model is None else self.setup.pipeline.models[model]
            # Without a free CPU in the cluster, an actor and its shards would wait forever.
            cpus = max(1, int(ray.cluster_resources().get("CPU", 1)))
            workers = min(self.setup.pipeline.run.workers or cpus, cpus) if spec is None else spec.workers
            gpus = 0 if spec is None else spec.worker_gpus
            at_once = shards_at_once(host, self.setup.pipeline)
            _check_gpus(address, str(model), workers * gpus)
            actor = ray.remote(
                num_cpus=1 if spec is None else 0,
                num_gpus=gpus,
                max_restarts=RESTARTS,
                max_task_retries=-1,
                max_concurrency=max(4 * MODEL_SHARDS, 2 * at_once),
                scheduling_strategy="SPREAD" if workers > 1 else "DEFAULT",
            )(Worker)
            for _ in range(workers):
                room = asyncio.Semaphore(1 if spec is None else at_once)
                worker = actor.remote(self.setup, verifier_processes=1, placement=RayPlacement(address))
                self._members[host].append(_Member(worker, room, waits_for=gpus))
        return self._members[host]


class RayPlacement:
    """Places model servers with Ray: an actor that holds the GPUs of one replica owns the server on its node."""

    def __init__(self, address: str | None) -> None:
        self.address = address

    async def place(self, plan: ServerPlan, log_file: Path) -> PlacedReplica:
        """Create the actor; Ray waits for a node with enough free GPUs.

        Raises:
            UserError: when the cluster is only this machine and has too few GPUs.
        """
        _connect(self.address)
        _check_gpus(self.address, plan.name, plan.gpus)
        actor = ray.remote(num_cpus=0, num_gpus=plan.gpus, max_restarts=plan.restarts)(_ReplicaActor)
        # Servers must be reachable from other machines only in a cluster of several nodes.
        return _RayReplica(plan, actor.remote(plan, log_file, loopback=self.address is None))


class _ReplicaActor:
    """Owns one server process on its node. When the node dies, Ray restarts the actor on another node."""

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
    """A proxy for such an actor, used by the endpoint."""

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
            return ReplicaState(failure=f"{self.plan.name}: its node died too often ({error})")
        except RayTaskError as error:
            raise error.cause from error

    async def stop(self) -> None:
        if self._asked is not None:
            self._asked.cancel()
        await asyncio.wait([asyncio.ensure_future(self.actor.stop.remote())], timeout=STOP_S)
        ray.kill(self.actor)


def _check_gpus(address: str | None, what: str, gpus: int) -> None:
    """Raise UserError when the cluster is only this machine and has too few GPUs; other clusters can grow."""
    has = int(ray.cluster_resources().get("GPU", 0))
    if address is None and has < gpus:
        raise UserError(f"{what} needs {gpus} GPUs, but this machine has {has}")


def _connect(address: str | None) -> None:
    if ray.is_initialized():
        return
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # an actor without GPUs keeps CUDA_VISIBLE_DEVICES
    ray.init(
        address=address,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        configure_logging=False,
    )
