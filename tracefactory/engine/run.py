"""The main flow: plan, refuse what cannot end well, run every stage as soon as its inputs allow, say what came of it.

What is done already is used as it is: a stage with its record, a shard with its file, a completion in the store.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

from pydantic import SecretStr

from tracefactory.config import Pipeline, resolved
from tracefactory.core.errors import UserError
from tracefactory.engine.executors import Executor, open_executor
from tracefactory.engine.flow import Flow, StageRun
from tracefactory.engine.plan import identities, make_plan
from tracefactory.engine.runs import RunFolder, RunOutcome, StageOutcome
from tracefactory.engine.worker import WorkerSetup
from tracefactory.serving.base import env_names
from tracefactory.store import requests

Watch = Callable[[Flow, Executor], AbstractAsyncContextManager[None]]
"""What shows a run to a person while it goes on, and lets them stop it."""


async def run_pipeline(pipeline: Pipeline, watch: Watch) -> RunOutcome:
    """Run a pipeline to its end, or to where it was stopped.

    Raises:
        UserError: before anything is paid for, e.g. when the version exists with other content.
        Interrupted: when it was stopped; what was in flight is stored, and the same command goes on from there.
    """
    root = pipeline.project.state_dir
    keys = identities(pipeline)
    refuse(pipeline, {stage: identity.key for stage, identity in keys.items()})
    plan = make_plan(pipeline, root)
    run = RunFolder(root, pipeline.name)
    try:
        run.begin(resolved(pipeline), plan)
        setup = WorkerSetup(
            pipeline=pipeline,
            keys={stage: identity.key for stage, identity in keys.items()},
            root=root,
            run_id=run.id,
            environ=_environ(pipeline),
        )
        executor = open_executor(setup)
        flow = Flow(pipeline, root, keys, executor, run)
        try:
            async with watch(flow, executor):
                await flow()
        finally:
            await executor.close()
        requests.compact(root)
        outcome = _outcome(flow, run)
        run.finish(outcome)
        return outcome
    finally:
        run.close()


def refuse(pipeline: Pipeline, keys: dict[str, str]) -> None:
    """Raise UserError with everything that would make the run end badly after it was paid for."""
    refusals = [stage.op.refusal(stage, pipeline, keys) for stage in pipeline.stages]
    if mistakes := [one for one in refusals if one is not None]:
        raise UserError(mistakes)


def _environ(pipeline: Pipeline) -> dict[str, SecretStr]:
    """Return the values of the environment variables that models and stages name, and no others."""
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
    )


def _stage_outcome(run: StageRun) -> StageOutcome:
    record = run.record.result()
    return StageOutcome(
        id=run.stage.id,
        op=f"{run.stage.verb}: {run.stage.name}",
        key=record.key,
        gives=run.stage.op.gives,
        digest=record.digest,
        cached=run.cached,
        tally=record.tally,
        paid=run.paid,
    )
