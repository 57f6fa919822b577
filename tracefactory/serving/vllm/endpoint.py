"""The endpoint of one model served by several vLLM replicas; requests go to the replicas that are up."""

from __future__ import annotations

import asyncio
from pathlib import Path

from tracefactory.core.errors import RunError
from tracefactory.serving.vllm.replica import PlacedReplica, Placement, ReplicaState, ServerPlan
from tracefactory.serving.vllm.shared import SharedLookup

_POLL_S = 0.5


class VLLMEndpoint:
    """`replicas` servers of one plan, started at the first request and kept running until `stop`.

    A request waits until one replica is up; the others join when they are ready. The client sends each request to the
    replica with the fewest in flight, so a faster replica gets more. While `shared` finds servers that
    `tracefactory serve` runs for the same model, those are used and none is started.
    """

    def __init__(
        self, plan: ServerPlan, replicas: int, placement: Placement, shared: SharedLookup | None = None
    ) -> None:
        self.plan = plan
        self.replicas = replicas
        self._placement = placement
        self._shared = shared
        self._lock = asyncio.Lock()
        self._placed: list[PlacedReplica] = []
        self._states: list[ReplicaState] = []
        self._polling: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()

    @property
    def notice(self) -> str:
        """The status for the user: how many replicas are up and what the others do; empty when all are up."""
        missing = [state for state in self._states if state.url is None]
        if not missing:
            return ""
        texts = dict.fromkeys(state.text for state in missing if state.failure is None)
        failed = sum(state.failure is not None for state in missing)
        details = [f"{failed} failed"] * bool(failed) + [*texts]
        return f"{len(self._states) - len(missing)} of {len(self._states)} servers up; {'; '.join(details)}"

    @property
    def gpus(self) -> int:
        """The GPUs of this endpoint's own replicas, from their start to their end; those that failed hold none."""
        return self.plan.gpus * sum(state.failure is None for state in self._states)

    @property
    def urls(self) -> list[str]:
        """The URLs of this endpoint's own replicas that are up."""
        return [state.url for state in self._states if state.url is not None]

    async def start(self, log_dir: Path) -> list[str]:
        """Return the URLs of the servers that are up; start the replicas if none have been started.

        Raises:
            RunError: when every replica has failed; the message has the failure of one.
            UserError: when the replicas cannot be placed.
        """
        while not self._placed and self._shared is not None:
            if (shared_urls := await self._shared.urls()) is None:
                break
            if shared_urls:
                return shared_urls
            await asyncio.sleep(_POLL_S)  # shared servers are registered, but they are starting or restarting
        async with self._lock:
            if not self._placed:
                await self._place(log_dir)
        while not self.urls:
            self._check_polling()
            if all(state.failure is not None for state in self._states):
                raise RunError(f"all servers of {self.plan.name} failed: {self._states[0].failure}")
            self._changed.clear()
            await self._changed.wait()
        return self.urls

    async def stop(self) -> None:
        """Stop all replicas."""
        async with self._lock:
            if self._polling is not None:
                self._polling.cancel()
                await asyncio.wait([self._polling])
                self._polling = None
            placed, self._placed, self._states = self._placed, [], []
            await asyncio.gather(*(replica.stop() for replica in placed))

    async def _place(self, log_dir: Path) -> None:
        for index in range(self.replicas):
            try:
                self._placed.append(await self._placement.place(self.plan, log_dir / f"replica-{index}.log"))
            except BaseException:
                placed, self._placed = self._placed, []
                await asyncio.gather(*(replica.stop() for replica in placed))
                raise
        self._states = [ReplicaState(text="starting")] * self.replicas
        self._polling = asyncio.create_task(self._poll())

    async def _poll(self) -> None:
        try:
            while True:
                states = list(await asyncio.gather(*(replica.state() for replica in self._placed)))
                if states != self._states:
                    self._states = states
                    self._changed.set()
                await asyncio.sleep(_POLL_S)
        finally:
            self._changed.set()  # wake up waiting requests, so that they see why polling ended

    def _check_polling(self) -> None:
        """Raise the error that ended the polling of the replicas, if it has ended."""
        if self._polling is None or self._polling.cancelled():
            raise RunError(f"{self.plan.name} was stopped")
        if self._polling.done():
            self._polling.result()
