"""Run a pipeline: plan, check for errors, run every stage as soon as its inputs are ready, report.

Finished work is reused: stages with a record, shards with a file, completions in the request store.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from pathlib import Path

from pydantic import SecretStr

from tracefactory.config.model import resolved
from tracefactory.core.errors import BudgetReached, UserError
from tracefactory.core.model import env_names
from tracefactory.core.pipeline import Pipeline
from tracefactory.core.stage import stage_of
from tracefactory.engine.caps import ended, ended_at_wall, spend_of
from tracefactory.engine.costs import unpriced
from tracefactory.engine.executors import open_executor
from tracefactory.engine.executors.base import Executor
from tracefactory.engine.flow import Flow, StageRun
from tracefactory.engine.identity import identities
from tracefactory.engine.plan import Plan, State, asked_models, make_plan, retry_of
from tracefactory.engine.runs import RunFolder, RunOutcome, StageOutcome
from tracefactory.engine.worker import WorkerSetup
from tracefactory.store.requests import compact

COMPACT_EVERY_S = 15.0

Watch = Callable[[Flow, Executor], AbstractAsyncContextManager[None]]
"""Displays a run in progress, and lets the user stop it."""


async def run_pipeline(
    pipeline: Pipeline, watch: Watch, *, retry_kind: str | None = None, sends: bool = True
) -> RunOutcome:
    """Run a pipeline until it is finished or stopped.

    Args:
        pipeline: the pipeline.
        watch: displays the run.
        retry_kind: the kind of failed rows to try again; by default all that are owed.
        sends: whether requests are sent; otherwise those without a stored completion fail, and stay owed.

    Raises:
        UserError: before any request is paid, e.g. when the version exists with different content.
        BudgetReached: when a cap was reached; what was in flight is stored, and the same command continues the run.
        Interrupted: when it was stopped; requests in flight are stored, and the same command continues the run.
    """
    root = pipeline.project.state_dir
    plan = make_plan(pipeline, root, count=False, retry_kind=retry_kind)
    refuse(pipeline, plan)
    run = RunFolder(root, pipeline.name)
    try:
        run.begin(resolved(pipeline), plan)
        found = identities(pipeline)
        setup = WorkerSetup(
            pipeline=pipeline,
            keys={stage: identity.key for stage, identity in found.items()},
            root=root,
            run_id=run.id,
            environ=_environ(pipeline),
            retry=retry_of(pipeline, retry_kind) if sends else "",  # failed rows keep their cause
            sends=sends,
        )
        executor = open_executor(setup)
        flow = Flow(pipeline, root, found, executor, run, setup.retry)
        try:
            async with watch(flow, executor), _compacting(root), ended_at_wall(flow, run.started):
                await flow()
        finally:
            await executor.close()
            flow.budget.close()
        await asyncio.to_thread(compact, root)
        outcome = _outcome(flow, run)
        run.finish(outcome)
        return outcome
    except BudgetReached as reached:
        stopped = await asyncio.to_thread(ended, pipeline, root, reached)
        run.log("budget_reached", text=str(stopped))
        raise stopped from reached
    finally:
        run.close()


def refuse(pipeline: Pipeline, plan: Plan) -> None:
    """Raise UserError with all problems that would make the run fail after requests were paid."""
    states = {stage.id: stage.state for stage in plan.stages}
    to_run = [stage for stage in pipeline.stages if states[stage.id] is not State.CACHED]
    refusals = [stage_of(stage).refusal(stage, pipeline) for stage in to_run]
    no_prices = [replace(one, file=pipeline.file) for one in unpriced(pipeline, asked_models(pipeline, plan))]
    if mistakes := [*no_prices, *(one for one in refusals if one is not None)]:
        raise UserError(mistakes)


@asynccontextmanager
async def _compacting(root: Path) -> AsyncIterator[None]:
    """Compact closed journals of the request store during a run."""

    async def compact_repeatedly() -> None:
        while True:
            await asyncio.sleep(COMPACT_EVERY_S)
            await asyncio.to_thread(compact, root)

    task = asyncio.create_task(compact_repeatedly())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def _environ(pipeline: Pipeline) -> Mapping[str, SecretStr]:
    """Return the values of the environment variables that models and stages name."""
    named = [*pipeline.models.values(), *(stage.params for stage in pipeline.stages)]
    names = {name for model in named for name in env_names(model)}
    return {name: SecretStr(os.environ[name]) for name in sorted(names) if name in os.environ}


def _outcome(flow: Flow, run: RunFolder) -> RunOutcome:
    return RunOutcome(
        run=run.id,
        pipeline=flow.pipeline.name,
        version=flow.pipeline.version,
        started=run.started,
        finished=time.time(),
        stages=tuple(_stage_outcome(one) for one in flow.stages.values()),
        spend=spend_of(flow.pipeline, flow.root, run.id),
    )


def _stage_outcome(run: StageRun) -> StageOutcome:
    record = run.record.result()
    return StageOutcome(
        id=run.stage.id,
        op=f"{run.stage.verb}: {run.stage.name}",
        key=record.key,
        gives=record.gives,
        digest=record.digest,
        cached=run.cached,
        tally=record.tally,
        paid=run.paid,
    )
