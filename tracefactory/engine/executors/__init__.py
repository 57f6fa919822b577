"""Where shards run: in this process (`inline`) or in Ray actors (`ray`). Same code, same rows, same digests."""

from __future__ import annotations

import os

from tracefactory.core.pipeline import Pipeline
from tracefactory.engine.executors.base import Executor
from tracefactory.engine.worker import WorkerSetup


FEW_CPUS = 4
"""Up to so many CPUs, Ray's start and its processes cost more than they gain over one process."""


def uses_ray(pipeline: Pipeline) -> bool:
    """Tell whether a pipeline runs on Ray. Both executors give the same rows, so the choice is in no key."""
    run = pipeline.run
    if run.executor != "auto":
        return run.executor == "ray"
    named = {name for stage in pipeline.stages for name in stage.model_names}
    models = [pipeline.models[name] for name in named]
    placed = any(model.worker_gpus or model.workers > 1 for model in models)
    return run.ray_address is not None or placed or (os.cpu_count() or 1) > FEW_CPUS


def open_executor(setup: WorkerSetup) -> Executor:
    """Return the executor that the pipeline's `run:` names; nothing is started before the first shard."""
    if not uses_ray(setup.pipeline):
        from tracefactory.engine.executors.inline import InlineExecutor

        return InlineExecutor(setup)
    from tracefactory.engine.executors.ray import RayExecutor

    return RayExecutor(setup)
