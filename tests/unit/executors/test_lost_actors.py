"""Actors that are lost: their shards go to others, and a run whose head or last actor is gone says so."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, ActorUnavailableError

from tests.contract import golden
from tracefactory.core.errors import Interrupted, RunError, RunStopped
from tracefactory.core.pipeline import RunOptions
from tracefactory.engine.executors import ray as module
from tracefactory.engine.executors.base import MODEL_HOST, host_of
from tracefactory.engine.executors.ray import RayExecutor, _Member
from tracefactory.engine.worker import WorkerSetup

pytestmark = pytest.mark.asyncio


def unavailable() -> Exception:
    return ActorUnavailableError("the actor restarts", None)


def actor(*answers: Any) -> _Member:
    """Return an actor that gives these answers, or raises them, one per call; then it does not answer."""
    left: Iterator[Any] = iter(answers)
    asked: list[int] = []

    async def answer(index: int) -> Any:
        asked.append(index)
        found = next(left, None)
        if found is None:
            await asyncio.Event().wait()
        if isinstance(found, Exception):
            raise found
        return found

    remote = SimpleNamespace(remote=lambda stage, index, layouts: answer(index))
    return _Member(SimpleNamespace(run_shard=remote, asked=asked), asyncio.Semaphore(1))


def executor_with(root: Path, *members: _Member) -> tuple[RayExecutor, Any]:
    pipeline = golden.pipeline().model_copy(update={"run": RunOptions(ray_address="auto")})
    executor = RayExecutor(WorkerSetup(pipeline, {}, root, "run"))
    stage = next(one for one in pipeline.stages if host_of(one, pipeline) == "cpu")
    executor._members["cpu"] = [*members]
    executor._lost = asyncio.get_running_loop().create_task(asyncio.Event().wait())  # type: ignore[arg-type]
    return executor, stage


async def test_a_shard_of_an_actor_that_restarts_goes_to_another_one(tmp_path: Path) -> None:
    # The node of the first one is gone, and no other one has a free CPU: it is unavailable for good.
    gone, other = actor(unavailable()), actor("done", "done")
    executor, stage = executor_with(tmp_path, gone, other)
    assert await asyncio.wait_for(executor.run_shard(stage, 3, {}), 10) == "done"
    assert await asyncio.wait_for(executor.run_shard(stage, 4, {}), 10) == "done"
    assert (gone.actor.asked, other.actor.asked) == ([3], [3, 4])
    assert gone.busy == other.busy == 0


async def test_a_single_actor_is_asked_again_when_it_is_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "AWAY_S", 0.01)
    only = actor(unavailable(), unavailable(), "done")
    executor, stage = executor_with(tmp_path, only)
    assert await asyncio.wait_for(executor.run_shard(stage, 0, {}), 10) == "done"
    assert only.actor.asked == [0, 0, 0]


async def test_what_is_lost_while_the_run_is_drained_is_not_sent_again(tmp_path: Path) -> None:
    other = actor("done")
    executor, stage = executor_with(tmp_path, actor(unavailable()), other)
    executor._draining = True
    with pytest.raises(Interrupted):
        await asyncio.wait_for(executor.run_shard(stage, 0, {}), 10)
    assert other.actor.asked == []


async def test_a_run_without_actors_fails_with_the_reason(tmp_path: Path) -> None:
    executor, stage = executor_with(tmp_path, actor(ActorDiedError()), actor(ActorDiedError()))
    with pytest.raises(RunError, match=f"{stage.id}: its workers cannot be kept running"):
        await asyncio.wait_for(executor.run_shard(stage, 0, {}), 10)
    with pytest.raises(RunError):  # others that waited for the same actors
        await asyncio.wait_for(executor.run_shard(stage, 1, {}), 10)


async def test_a_lost_head_stops_what_waits_for_an_answer(tmp_path: Path) -> None:
    executor, stage = executor_with(tmp_path, actor())
    lost = asyncio.Event()
    executor._lost = asyncio.create_task(lost.wait())  # type: ignore[arg-type]
    waiting = [asyncio.create_task(executor.run_shard(stage, index, {})) for index in range(2)]
    await asyncio.sleep(0)
    lost.set()
    for one in waiting:
        with pytest.raises(RunStopped, match="the head of the Ray cluster has not answered"):
            await asyncio.wait_for(one, 10)


async def test_the_actors_of_a_released_model_give_their_gpus_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    executor, _ = executor_with(tmp_path)
    pipeline = executor.setup.pipeline
    name = next(name for name, spec in pipeline.models.items() if spec.in_process)
    held = pipeline.models[name].model_copy(update={"gpus": 1})
    models = {**pipeline.models, name: held}
    executor.setup = replace(executor.setup, pipeline=pipeline.model_copy(update={"models": models}))
    calls: list[tuple[str, str]] = []

    def member(who: str) -> _Member:
        async def noted(what: str) -> None:
            calls.append((who, what))

        release = SimpleNamespace(remote=lambda model: noted(f"release {model}"))
        close = SimpleNamespace(remote=lambda: noted("close"))
        return _Member(SimpleNamespace(who=who, release=release, close=close), asyncio.Semaphore(1))

    monkeypatch.setattr(module.ray, "kill", lambda actor: calls.append((actor.who, "kill")))
    own = f"{MODEL_HOST}{name}"
    executor._members |= {"cpu": [member("cpu")], own: [member("own")]}
    await executor.release(name)
    told = f"release {name}"
    assert calls == [("cpu", told), ("own", told), ("own", "close"), ("own", "kill")]
    assert own not in executor._members  # the next shard makes new ones
