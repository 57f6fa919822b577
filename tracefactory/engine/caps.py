"""The caps of a run as its driver sees them: warnings, the time of the run, what is missing when a cap is reached."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Protocol

from tracefactory.config.command import run_command
from tracefactory.core.budget import WARN_AT
from tracefactory.core.errors import BudgetReached, Interrupted
from tracefactory.core.pipeline import Pipeline
from tracefactory.engine.plan import Plan, make_plan
from tracefactory.engine.runs import SpendLine
from tracefactory.engine.spending import prices_of
from tracefactory.store.damage import REPAIR, Damage
from tracefactory.store.spend import Ledger, spent_by


class BudgetWatch:
    """Says once for every cap that most of it is spent, and without caps, which lines of the ledger are damaged.

    `started` is when the run began, in Unix seconds.
    """

    def __init__(self, pipeline: Pipeline, root: Path, started: float) -> None:
        self.pipeline, self.started = pipeline, started
        self._caps = pipeline.caps
        self._ledger = Ledger(root, pipeline.ledger_name) if self._caps else None
        self._damage: list[Damage] = []
        if self._ledger is None:
            Ledger(root, pipeline.ledger_name, met=self._damage.append).close()
        self._prices = prices_of(pipeline) if self._caps else {}
        self._wall_s = pipeline.budget.wall_s

    def warnings(self) -> Iterator[str]:
        """Yield a sentence for every cap of which 80% or more are spent, and that no call has named before."""
        while self._damage:
            yield f"{self._damage.pop(0)}. `{REPAIR}` keeps the lines that can be read"
        if self._wall_s is not None and (seconds := time.time() - self.started) >= WARN_AT * self._wall_s:
            share, self._wall_s = seconds / self._wall_s, None
            yield f"budget: {share:.0%} of the time of this run are over (wall {self.pipeline.budget.wall})"
        if self._ledger is None:
            return
        self._ledger.refresh()
        for cap in tuple(self._caps):
            spent = self._ledger.spent(cap, self._prices, reserved=False)
            if spent >= WARN_AT * cap.limit:
                self._caps.remove(cap)
                most = f"{spent / cap.limit:.0%}" if cap.limit else "all"
                yield f"budget: {most} of the cap {cap} are spent ({cap.amount(spent)})"

    def close(self) -> None:
        """Close the ledger."""
        if self._ledger is not None:
            self._ledger.close()


class Stoppable(Protocol):
    """A flow, see `engine.flow.Flow`."""

    pipeline: Pipeline

    async def stop(self) -> None: ...


@asynccontextmanager
async def ended_at_wall(flow: Stoppable, started: float) -> AsyncIterator[None]:
    """Stop a flow when its time is over.

    Raises:
        BudgetReached: when it was stopped for that.
    """
    limit_s, reached = flow.pipeline.budget.wall_s, asyncio.Event()
    if limit_s is None:
        yield
        return

    async def end() -> None:
        await asyncio.sleep(max(0.0, limit_s - (time.time() - started)))
        reached.set()
        await flow.stop()

    task = asyncio.create_task(end())
    try:
        yield
    except Interrupted:
        if reached.is_set():
            raise BudgetReached(f"wall {flow.pipeline.budget.wall}: the time of this run is over") from None
        raise
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def ended(pipeline: Pipeline, root: Path, reached: BudgetReached, retry_kind: str | None = None) -> BudgetReached:
    """Return the end of a run at a cap with what is missing and how to go on."""
    plan, command = make_plan(pipeline, root, retry_kind=retry_kind), run_command(pipeline)
    raised = (f" {cap.option(2 * cap.limit)}" for cap in pipeline.caps if str(cap) in str(reached))
    return BudgetReached(
        f"{reached}. What was paid for is stored. {_missing(plan)}. To go on: {command}{next(raised, '')}. To publish "
        f"what is there as partial: {command} --no-requests --set stages.ID.with.allow_missing=1, with the id of the "
        "publish stage"
    )


def spend_of(pipeline: Pipeline, root: Path, run: str) -> tuple[SpendLine, ...]:
    """Return what one run has spent, by model."""
    prices = prices_of(pipeline)
    return tuple(
        SpendLine.of(model, amount, prices[model].label() if model in prices else "")
        for model, amount in spent_by(root, pipeline.ledger_name, run).items()
    )


def _missing(plan: Plan) -> str:
    """Return a sentence with the requests that are missing, by stage."""
    parts = [f"{one.id} {one.to_pay.requests:,}" for one in plan.stages if one.to_pay and one.to_pay.requests]
    parts += [f"{one.id} not known yet" for one in plan.stages if one.unknown]
    at_most = "At most " if plan.bound else ""
    return f"{at_most}{plan.requests:,} requests are missing" + (f" ({', '.join(parts)})" if parts else "")
