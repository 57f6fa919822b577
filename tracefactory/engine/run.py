"""Run a pipeline: plan, check for errors, run every stage as soon as its inputs are ready, report.

Finished work is reused: stages with a record, shards with a file, completions in the request store.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, closing, suppress
from dataclasses import replace
from pathlib import Path

from pydantic import SecretStr

from tracefactory.config.model import resolved
from tracefactory.core.errors import BudgetReached, Interrupted, RunError, UserError
from tracefactory.core.pipeline import Pipeline
from tracefactory.core.rows import Kind
from tracefactory.core.stage import kinds_of, stage_of
from tracefactory.engine.caps import ended, ended_at_wall, spend_of
from tracefactory.engine.costs import unpriced
from tracefactory.engine.executors import open_executor
from tracefactory.engine.executors.base import Executor
from tracefactory.engine.flow import Flow, StageRun
from tracefactory.engine.identity import identities
from tracefactory.engine.plan import Plan, State, asked_models, make_plan, retry_of
from tracefactory.engine.reporting.events import logged
from tracefactory.engine.runs import End, RunFolder, RunOutcome, StageOutcome, exit_status
from tracefactory.engine.sharing import Sharing, sharing_of
from tracefactory.engine.worker import WorkerSetup
from tracefactory.store.requests import compact
from tracefactory.store.scores import merge
from tracefactory.store.spend import Ledger

COMPACT_EVERY_S = 15.0

Watch = Callable[[Flow, Executor], AbstractAsyncContextManager[None]]
"""Displays a run in progress, and lets the user stop it."""


async def run_pipeline(
    pipeline: Pipeline,
    watch: Watch,
    *,
    retry_kind: str | None = None,
    sends: bool = True,
    unfinished: Callable[[RunOutcome], None] = lambda outcome: None,
) -> RunOutcome:
    """Run a pipeline until it is finished or stopped.

    Args:
        pipeline: the pipeline.
        watch: displays the run.
        retry_kind: the kind of failed rows to try again; by default all that are owed.
        sends: whether requests are sent; otherwise those without a stored completion fail, and stay owed.
        unfinished: is given the outcome of a run that did not finish, before what ended it is raised.

    Raises:
        UserError: before any request is paid, e.g. when the version exists with different content.
        BudgetReached: when a cap was reached; what was in flight is stored, and the same command continues the run.
        Interrupted: when it was stopped; requests in flight are stored, and the same command continues the run.
    """
    with closing(sharing_of(pipeline)) as sharing:
        await asyncio.to_thread(sharing.pull)
        return await _run(pipeline, sharing, watch, retry_kind, sends=sends, unfinished=unfinished)


async def _run(
    pipeline: Pipeline,
    sharing: Sharing,
    watch: Watch,
    retry_kind: str | None,
    *,
    sends: bool,
    unfinished: Callable[[RunOutcome], None],
) -> RunOutcome:
    root = pipeline.project.state_dir
    plan = make_plan(pipeline, root, count=False, retry_kind=retry_kind)
    refuse(pipeline, plan)
    environ = {name: SecretStr(os.environ[name]) for name in pipeline.variables if name in os.environ}
    run = RunFolder(root, pipeline.name, {name: secret.get_secret_value() for name, secret in environ.items()})
    flow: Flow | None = None
    try:
        run.begin(resolved(pipeline), plan)
        found = identities(pipeline)
        keys = {stage: identity.key for stage, identity in found.items()}
        retry = retry_of(pipeline, retry_kind) if sends else ""  # failed rows keep their cause
        executor = open_executor(WorkerSetup(pipeline, keys, root, run.id, environ, retry, sends))
        flow = Flow(pipeline, root, found, executor, run, sharing, retry)
        await _drive(flow, executor, watch)
        await asyncio.to_thread(compact, root)
        await asyncio.to_thread(merge, root)
        outcome = _outcome(pipeline, run, flow)
        run.finish(outcome)
        await asyncio.to_thread(sharing.put_run, run.path)
        return outcome
    except BudgetReached as reached:
        stopped = await asyncio.to_thread(ended, pipeline, root, reached, retry_kind)
        run.log("budget_reached", text=str(stopped))
        unfinished(_ended(pipeline, run, flow, stopped))
        await asyncio.to_thread(sharing.put_run, run.path)
        raise stopped from reached
    except BaseException as error:
        with suppress(OSError, RunError):  # e.g. on a full disk, which `error` is about
            unfinished(_ended(pipeline, run, flow, error))
            await asyncio.to_thread(sharing.put_run, run.path)
        raise
    finally:
        run.close()


async def _drive(flow: Flow, executor: Executor, watch: Watch) -> None:
    """Run the stages, with everything that goes on beside them."""
    run = flow.run
    try:
        async with (
            flow.sharing.during(run.id, run.log, flow.lost),
            _closed(executor, run),
            logged(executor, run.log),
            watch(flow, executor),
            _compacting(flow.root),
            ended_at_wall(flow, run.started),
        ):
            await flow()
    finally:
        flow.budget.close()


def refuse(pipeline: Pipeline, plan: Plan) -> None:
    """Refuse what would make the run fail after requests were paid.

    Raises:
        UserError: with all problems.
        RunError: when there are caps, and what was spent cannot be read.
    """
    if pipeline.caps:
        Ledger(pipeline.project.state_dir, pipeline.ledger_name).close()
    states = {stage.id: stage.state for stage in plan.stages}
    to_run = [stage for stage in pipeline.stages if states[stage.id] is not State.CACHED]
    refusals = [stage_of(stage).refusal(stage, pipeline) for stage in to_run]
    no_prices = [replace(one, file=pipeline.file) for one in unpriced(pipeline, asked_models(pipeline, plan))]
    templates = [one for stage in to_run for one in stage_of(stage).template_mistakes(stage, pipeline)]
    if mistakes := [*no_prices, *(one for one in refusals if one is not None), *templates]:
        raise UserError(mistakes)


@asynccontextmanager
async def _closed(executor: Executor, run: RunFolder) -> AsyncIterator[None]:
    """Close an executor in the end. A run that was ended by something else logs what is wrong with its batches."""
    try:
        yield
    except BaseException:
        try:
            await executor.close()
        except RunError as fault:
            run.log("batches_differ", text=str(fault))
        raise
    await executor.close()


@asynccontextmanager
async def _compacting(root: Path) -> AsyncIterator[None]:
    """Compact closed journals of the request store during a run."""

    async def compact_repeatedly() -> None:
        while True:
            await asyncio.sleep(COMPACT_EVERY_S)
            await asyncio.to_thread(compact, root)
            await asyncio.to_thread(merge, root)

    task = asyncio.create_task(compact_repeatedly())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def _ended(pipeline: Pipeline, run: RunFolder, flow: Flow | None, error: BaseException) -> RunOutcome:
    """Store how a run has ended that did not finish, and return it."""
    outcome = _outcome(pipeline, run, flow, error)
    run.finish(outcome)
    return outcome


def _outcome(pipeline: Pipeline, run: RunFolder, flow: Flow | None, error: BaseException | None = None) -> RunOutcome:
    """Return how a run has ended; `error` is what it raised."""
    reason = "" if error is None or isinstance(error, Interrupted) else str(error) or repr(error)
    kinds = kinds_of(pipeline)
    return RunOutcome(
        run=run.id,
        pipeline=pipeline.name,
        version=pipeline.version,
        started=run.started,
        finished=time.time(),
        stages=() if flow is None else tuple(_stage_outcome(one, kinds) for one in flow.stages.values()),
        spend=spend_of(pipeline, pipeline.project.state_dir, run.id),
        state=End.of(error),
        reason=reason,
        exit_status=exit_status(error),
    )


def _stage_outcome(run: StageRun, kinds: Mapping[str, Kind]) -> StageOutcome:
    done = run.record.done() and run.record.exception() is None
    return StageOutcome(
        id=run.stage.id,
        op=f"{run.stage.verb}: {run.stage.name}",
        key=run.folder.key,
        gives=kinds[run.stage.id],
        digest=run.record.result().digest if done else "",
        cached=run.cached,
        done=done,
        failed=run.failed,
        tally=run.tally,
        paid=run.paid,
    )
