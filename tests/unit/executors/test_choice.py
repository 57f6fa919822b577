"""`run: executor`: what `auto` takes where, and that naming one wins."""

from __future__ import annotations

import os
from typing import Any

import pytest

from tests.contract import golden
from tracefactory.core.pipeline import Pipeline, RunOptions
from tracefactory.engine import executors


def pipeline(**run: Any) -> Pipeline:
    return golden.pipeline().model_copy(update={"run": RunOptions(**run)})


def with_replicas(count: int) -> Pipeline:
    made = pipeline()
    models = {
        name: spec.model_copy(update={"replicas": count} if spec.use == "transformers" else {})
        for name, spec in made.models.items()
    }
    return made.model_copy(update={"models": models})


@pytest.mark.parametrize(
    ("made", "cpus", "ray"),
    [
        (pipeline(), 2, False),
        (pipeline(), 64, True),
        (pipeline(ray_address="auto"), 2, True),
        (with_replicas(2), 2, True),
        (pipeline(executor="ray"), 2, True),
        (pipeline(executor="inline", ray_address="auto"), 64, False),
    ],
)
def test_ray_is_taken_where_there_is_something_to_gain(
    made: Pipeline, cpus: int, ray: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: cpus)
    assert executors.uses_ray(made) is ray
