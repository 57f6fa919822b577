"""`tracefactory plan`."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

from tracefactory.cli.options import (
    Budget,
    Json,
    Limit,
    PipelineFile,
    Profile,
    RetryFailed,
    Sets,
    check_kind,
    with_budget,
)

if TYPE_CHECKING:
    from rich.console import RenderableType

    from tracefactory.engine.plan import Plan, PlannedStage


def plan(
    pipeline: PipelineFile,
    profile: Profile = None,
    sets: Sets = None,
    budget: Budget = None,
    limit: Limit = None,
    retry_failed: RetryFailed = None,
    json: Json = False,
) -> None:
    """Show what a run would do: the state of every stage with its reason, and the requests, tokens and cost to pay."""
    from tracefactory.cli.show import stdout_console
    from tracefactory.config import load_pipeline
    from tracefactory.engine.costs import unpriced
    from tracefactory.engine.file_count import many_files
    from tracefactory.engine.plan import asked_models, make_plan
    from tracefactory.engine.sharing import sharing_of

    check_kind(retry_failed)
    loaded = load_pipeline(pipeline, profile=profile, sets=with_budget(sets, budget), limit=limit)
    with closing(sharing_of(loaded)) as sharing:
        sharing.pull()
    made = make_plan(loaded, loaded.project.state_dir, compare=True, retry_kind=retry_failed)
    if json:
        print(made.model_dump_json(indent=2))
        return
    refused = [f"no run begins: {one}" for one in unpriced(loaded, asked_models(loaded, made))]
    refused += filter(None, [many_files(loaded)])
    stdout_console().print(_table(made, refused), highlight=False)


def _table(plan: Plan, refused: list[str]) -> RenderableType:
    from rich.console import Group
    from rich.text import Text

    from tracefactory.engine.plan import State
    from tracefactory.engine.reporting.report import plain_table

    at_most = "at most " if plan.bound else ""
    table = plain_table(f"{plan.pipeline} {plan.version}: {at_most}{plan.requests:,} requests to pay")
    for name in ("stage", "state"):
        table.add_column(name, no_wrap=True)
    for name in ("paid", "to pay", "tokens", "cost $"):
        table.add_column(name, justify="right")
    for stage in plan.stages:
        cached = stage.state is State.CACHED
        table.add_row(stage.id, f"cached, {stage.why}" if cached else stage.state.value, *_to_pay(stage))
    to_run = [one for one in plan.stages if one.state is not State.CACHED]
    notes = [f"{one.id}: {text}" for one in to_run for text in (one.why, *(one.upgrade.lines if one.upgrade else ()))]
    notes += [f"GPU phase {number} of {len(plan.phases)}: {one}" for number, one in enumerate(plan.phases, 1)]
    notes += [*map(str, plan.caps), *map(str, plan.gpus), *refused, *(f"damaged: {one}" for one in plan.damage)]
    return Group(table, *(Text(f"• {note}") for note in notes))


def _to_pay(stage: PlannedStage) -> list[str]:
    if stage.unknown:
        return ["", "not known yet", "", ""]
    pay = stage.to_pay
    if pay is None:
        return [""] * 4
    if pay.tokens_expected is None:
        tokens, cost = f"at most {pay.tokens_at_most:,}", _dollars("at most", pay.cost_at_most)
    else:
        tokens, cost = f"about {pay.tokens_expected:,}", _dollars("about", pay.cost_expected)
    if pay.bound:
        return ["", f"at most {pay.requests:,}", tokens, cost]
    return [f"{pay.paid:,}", f"{pay.requests:,}", tokens, cost] if pay.requests else [f"{pay.paid:,}", "0", "0", "0"]


def _dollars(how: str, cost: float | None) -> str:
    return "unknown" if cost is None else f"{how} {cost:.4f}"
