"""`tracefactory plan`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tracefactory.cli.options import Json, Limit, PipelineFile, Profile, Sets

if TYPE_CHECKING:
    from rich.table import Table

    from tracefactory.engine.plan import Plan, PlannedStage


def plan(
    pipeline: PipelineFile, profile: Profile = None, sets: Sets = None, limit: Limit = None, json: Json = False
) -> None:
    """Say what a run would do: what is done, what is not and why, and the requests, tokens and cost still to pay."""
    from tracefactory.cli.show import stdout_console
    from tracefactory.config import load_pipeline
    from tracefactory.engine.plan import make_plan

    loaded = load_pipeline(pipeline, profile=profile, sets=sets or (), limit=limit)
    made = make_plan(loaded, loaded.project.state_dir)
    if json:
        print(made.model_dump_json(indent=2))
        return
    stdout_console().print(_table(made), highlight=False)


def _table(plan: Plan) -> Table:
    from rich.table import Table

    title = f"{plan.pipeline} {plan.version}: {'at most ' if plan.bound else ''}{plan.requests:,} requests to pay"
    table = Table(title=title, title_justify="left", header_style="bold")
    for name in ("stage", "does", "state"):
        table.add_column(name, no_wrap=True)
    table.add_column("why", max_width=60)
    for name in ("paid", "to pay", "tokens", "cost $"):
        table.add_column(name, justify="right")
    for stage in plan.stages:
        table.add_row(stage.id, stage.op.replace(":", ": "), stage.state.value, stage.why, *_to_pay(stage))
    return table


def _to_pay(stage: PlannedStage) -> list[str]:
    if stage.unknown:
        return ["", "known once read", "", ""]
    pay = stage.to_pay
    if pay is None:
        return [""] * 4
    if pay.tokens_expected is None or pay.cost_expected is None:
        tokens, cost = f"at most {pay.tokens_at_most:,}", f"at most {pay.cost_at_most:.4f}"
    else:
        tokens, cost = f"about {pay.tokens_expected:,}", f"about {pay.cost_expected:.4f}"
    if pay.bound:
        return ["", f"at most {pay.requests:,}", tokens, cost]
    return [f"{pay.paid:,}", f"{pay.requests:,}", tokens, cost] if pay.requests else [f"{pay.paid:,}", "0", "0", "0"]
