"""The interface of executors, and the assignment of stages to workers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from tracefactory.core.pipeline import Pipeline, StageSpec
from tracefactory.core.spans import Span
from tracefactory.core.stage import stage_of
from tracefactory.engine.shards import MODEL_SHARDS, shards_in_progress
from tracefactory.serving.status import ModelStatus
from tracefactory.store.stages import ShardRecord

Layouts = Mapping[str, int]
"""The number of shards of every stage."""


class Executor(Protocol):
    """Runs shards. The result None for a shard means that it was stopped because the run is being drained."""

    async def run_shard(self, stage: StageSpec[Any], index: int, layouts: Layouts) -> ShardRecord | None: ...

    async def run_whole(
        self, stage: StageSpec[Any], layouts: Layouts, inputs: Mapping[str, str], reports: Sequence[Any] = ()
    ) -> list[ShardRecord]: ...

    async def write_range(self, stage: StageSpec[Any], layouts: Layouts, number: int, span: Span) -> Any: ...

    async def progress(self) -> Mapping[str, Mapping[str, float]]:
        """Return live numbers by stage id."""
        ...

    async def events(self) -> Sequence[Mapping[str, Any]]:
        """Return the failures since the last call, for the log of the run; see `engine.reporting.events`."""
        ...

    async def models(self) -> Mapping[str, ModelStatus]:
        """Return the state of the models and their servers, with notices such as the progress of starting them."""
        ...

    async def gpus(self) -> int:
        """Return the number of GPUs of the machine or cluster."""
        ...

    async def release(self, model: str) -> None:
        """End the clients, servers and workers of a model and give its GPUs back; later requests start them again."""
        ...

    async def drain(self) -> None:
        """Send no further requests; those in flight are finished and stored."""
        ...

    async def close(self) -> None:
        """End all workers, when all responses are stored.

        Raises:
            RunError: when something went wrong of which no shard was told.
        """
        ...


_ALL_SHARDS = 10_000


MODEL_HOST = "model:"
"""The prefix of the names of hosts that belong to a model."""


def host_of(stage: StageSpec[Any], pipeline: Pipeline) -> str:
    """Return the host for a stage's shards: that of its model, or a CPU."""
    model = stage_of(stage).asks(stage, pipeline)
    return "cpu" if model is None else f"{MODEL_HOST}{model}"


def shards_at_once(host: str, pipeline: Pipeline) -> int:
    """Return how many shards of a host run concurrently: of a model with batches all, so that they share batches."""
    spec = pipeline.models.get(host.removeprefix(MODEL_HOST)) if host.startswith(MODEL_HOST) else None
    if spec is None:
        return MODEL_SHARDS
    return shards_in_progress(spec.concurrency) if spec.batching is None else _ALL_SHARDS
