"""The GPUs that the stages of a pipeline need, and the phases in which stages run that cannot have theirs at once."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any, NamedTuple

from tracefactory.core.errors import Mistake
from tracefactory.core.pipeline import Pipeline, StageSpec
from tracefactory.core.stage import stage_of


class Phase(NamedTuple):
    """Stages that have their GPUs at the same time, and the GPUs by model."""

    stages: tuple[str, ...]
    gpus: Mapping[str, int]

    def __str__(self) -> str:
        held = ", ".join(f"{name} {count}" for name, count in self.gpus.items())
        return f"{', '.join(self.stages)} ({held})"


def gpus_of(stage: StageSpec[Any], pipeline: Pipeline) -> dict[str, int]:
    """Return the GPUs that a stage needs while it works, by model; models without GPUs are left out."""
    models = pipeline.models
    return {name: count for name in stage_of(stage).loads(stage, pipeline) if (count := models[name].gpus_in_all)}


def too_many_gpus(stage: StageSpec[Any], pipeline: Pipeline) -> list[Mistake]:
    """Return the mistake that a stage alone needs more GPUs than `run: gpus` declares."""
    declared, needed = pipeline.run.gpus, gpus_of(stage, pipeline)
    if declared is None or sum(needed.values()) <= declared:
        return []
    each = " and ".join(f"{count} for {name}" for name, count in needed.items())
    hint = "raise `run: gpus`, or lower `gpus` or `replicas` of the models"
    return [Mistake(f"needs {sum(needed.values())} GPUs at once ({each}), but `run: gpus` is {declared}", hint=hint)]


def unheld_gpus(asked: Iterable[str], stage: StageSpec[Any], pipeline: Pipeline) -> list[Mistake]:
    """Return the mistake that a stage asks chats of a model on GPUs that its workers do not hold.

    A model in the memory of workers is served by the worker that asks it, on the GPUs of that worker: those of the
    model that the stage asks first.

    Args:
        asked: the models of which the stage asks chats.
        stage: the stage.
        pipeline: its pipeline.
    """
    first = stage_of(stage).asks(stage, pipeline)
    hint = f"set `gpus: 0` for it, or ask {first!r} or a `use: vllm` model"
    return [
        Mistake(f"{name!r} has `gpus: {count}`, but the stage runs on the workers of {first!r}", hint=hint)
        for name in sorted({*asked} - {first})
        if (count := pipeline.models[name].worker_gpus)
    ]


def phases(pipeline: Pipeline, to_run: Collection[str], capacity: int | None) -> list[Phase]:
    """Return the phases of a run: in each, the stages have their GPUs at once, and the next phase begins when one ends.

    It is the order in which `engine.gpus` gives GPUs to stages whose inputs have begun, if those of one phase end
    together.

    Args:
        pipeline: the pipeline.
        to_run: the ids of the stages that are not finished.
        capacity: the number of GPUs; None is as many as are needed.
    """
    left = [stage for stage in pipeline.stages if stage.id in to_run and gpus_of(stage, pipeline)]
    found: list[Phase] = []
    while left:
        held: dict[str, int] = {}
        begun: list[StageSpec[Any]] = []
        for stage in left:
            above = {one.id for one in pipeline.above(stage)}
            if any(one.id in above for one in left if one not in begun):
                continue
            more = held | gpus_of(stage, pipeline)
            if capacity is None or sum(more.values()) <= capacity or not begun:
                held, begun = more, [*begun, stage]
        found.append(Phase(tuple(stage.id for stage in begun), held))
        left = [stage for stage in left if stage not in begun]
    return found
