"""Where shards run: in this process (`inline`) or in Ray actors (`ray`). Same code, same rows, same digests."""

from __future__ import annotations

from tracefactory.engine.executors.base import Executor
from tracefactory.engine.worker import WorkerSetup


def open_executor(setup: WorkerSetup) -> Executor:
    """Return the executor that the pipeline's `run:` names; nothing is started before the first shard."""
    if setup.pipeline.run.executor == "inline":
        from tracefactory.engine.executors.inline import InlineExecutor

        return InlineExecutor(setup)
    from tracefactory.engine.executors.ray import RayExecutor

    return RayExecutor(setup)
