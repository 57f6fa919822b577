"""Model servers on a Ray cluster: each is owned by an actor that holds its GPUs."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayTaskError

from tracefactory.core.pipeline import RunOptions
from tracefactory.engine.executors.ray_cluster import check_gpus, connect, is_cluster
from tracefactory.serving.vllm.replica import LOOPBACK, PlacedReplica, Replica, ReplicaState, ServerPlan

LOOK_S = 2.0  # for the answer of an actor that may wait for its node
STOP_S = 20.0  # for a model server to exit; then its actor and with it the server are killed


class RayPlacement:
    """Places model servers with Ray: an actor that holds the GPUs of one replica owns the server on its node."""

    def __init__(self, run: RunOptions) -> None:
        self.run = run
        self.cluster = is_cluster(run)

    async def place(self, plan: ServerPlan, log_file: Path) -> PlacedReplica:
        """Create the actor; Ray waits for a node with enough free GPUs.

        Raises:
            UserError: when the cluster is only this machine and has too few GPUs.
        """
        connect(self.run)
        check_gpus(plan.name, plan.gpus, cluster=self.cluster)
        actor = ray.remote(num_cpus=0, num_gpus=plan.gpus, max_restarts=plan.restarts)(_ReplicaActor)
        # Servers must be reachable from other machines only in a cluster of several nodes.
        return _RayReplica(plan, actor.remote(plan, log_file, loopback=not self.cluster))


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
        done, _ = await asyncio.wait([self._asked], timeout=LOOK_S)
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
        await asyncio.gather(asyncio.wait_for(self.actor.stop.remote(), STOP_S), return_exceptions=True)
        ray.kill(self.actor)
