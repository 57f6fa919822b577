"""Executors run shards in this process (`inline`) or in Ray actors (`ray`), with equal rows and digests."""

from __future__ import annotations

import os

from tracefactory.core.pipeline import Pipeline
from tracefactory.engine.executors.base import Executor
from tracefactory.engine.worker import WorkerSetup

FEW_CPUS = 4
"""Up to this number of CPUs, starting Ray and its processes takes more time than it saves."""


def uses_ray(pipeline: Pipeline) -> bool:
    """Return whether a pipeline runs on Ray. Both executors give the same rows, so this is not part of keys."""
    run = pipeline.run
    if run.executor != "auto":
        return run.executor == "ray"
    named = {name for stage in pipeline.stages for name in stage.model_names}
    models = [pipeline.models[name] for name in named]
    placed = any(model.worker_gpus or model.workers > 1 for model in models)
    return run.ray_address is not None or placed or (os.cpu_count() or 1) > FEW_CPUS


def open_executor(setup: WorkerSetup) -> Executor:
    """Return the executor of the pipeline's `run:` section. Nothing is started before the first shard."""
    if not uses_ray(setup.pipeline):
        from tracefactory.engine.executors.inline import InlineExecutor

        return InlineExecutor(setup)
    from tracefactory.engine.executors.ray import RayExecutor

    return RayExecutor(setup)
