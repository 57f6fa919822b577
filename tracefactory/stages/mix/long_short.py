"""`mix: long_short`: each problem that both styles solved appears once, a set share of them with the long trace.

Mix Distillation (arXiv 2502.12143): small students learn best from 20% long and 80% short chains of thought over the
problems both teachers solved, each problem once, the size unchanged. Which problem gets which style is drawn by hash.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Literal

import polars as pl
from pydantic import Field

from tracefactory.core.digests import draws
from tracefactory.core.errors import Mistake
from tracefactory.core.pipeline import Pipeline, StageSpec
from tracefactory.core.rows import Frozen, Outcome
from tracefactory.core.stage import STAGES, Decided, Facts, Stage, Work


class Unit(StrEnum):
    """What a share is a share of."""

    PROBLEMS = "problems"
    TOKENS = "tokens"


class MixParams(Frozen):
    """The shares of the two styles, which add up to 1, and which traces take them."""

    long: float = Field(default=0.2, ge=0, le=1, description="Share of long traces.")
    short: float = Field(default=0.8, ge=0, le=1, description="Share of short traces.")
    unit: Unit = Field(default=Unit.PROBLEMS, description="What the shares are of: problems, or completion tokens.")
    size: int | None = Field(
        default=None, ge=1, description="Problems in the mix; null is all that both styles solved."
    )
    pick: Literal["drawn", "shortest", "longest"] = Field(
        default="drawn", description="Which trace is taken for a problem that a style solved several times."
    )
    seed: int = Field(default=0, ge=0, description="Another seed draws another mix.")


class MixLongShort(Stage[MixParams]):
    """Mix by the style of the prompt that made a trace. Needs verdicts: only correct traces count as solved."""

    verb, name, version = "mix", "long_short", "2"
    Params = MixParams
    work_on = Work.TABLE

    def check(self, stage: StageSpec[MixParams], pipeline: Pipeline) -> list[Mistake]:
        total = stage.params.long + stage.params.short
        if abs(total - 1) > 1e-9:
            return [Mistake(f"stage {stage.id!r}: long + short must be 1, not {total:g}")]
        return []

    def facts(self, stage: StageSpec[MixParams], numbers: Mapping[str, float]) -> Facts:
        params = stage.params
        return Facts(shares={"long": params.long, "short": params.short}, unit=params.unit.value)

    def reads(self, stage: StageSpec[MixParams], pipeline: Pipeline) -> frozenset[str]:
        return frozenset({"style", "completion_tokens", "verdict"})

    def decide(self, stage: StageSpec[MixParams], frame: pl.DataFrame, pipeline: Pipeline) -> Decided:
        verdict = pl.col("verdict")
        outcome = verdict.struct.field("outcome") if frame.schema["verdict"] == pl.Struct else pl.lit(None, pl.String)
        return mix(frame.select("problem_id", "id", "style", tokens="completion_tokens", outcome=outcome), stage.params)


def mix(traces: pl.DataFrame, params: MixParams) -> Decided:
    """Decide which trace of each problem is in the mix.

    Args:
        traces: one row per trace: problem_id, id, style, tokens, outcome.
        params: shares, unit, size, pick and seed.
    """
    # What is drawn stands for the ids below: two ids never draw the same, and numbers are faster to join than text.
    ranked = traces.with_columns(
        lot=pl.Series(draws(traces["id"].to_arrow(), params.seed)),
        place=pl.Series(draws(traces["problem_id"].to_arrow(), params.seed)),
    )
    solved = ranked.filter(pl.col("outcome") == Outcome.CORRECT.value, pl.col("style").is_in(["long", "short"]))
    order = {"drawn": ["lot"], "shortest": ["tokens", "lot"], "longest": ["tokens", "lot"]}[params.pick]
    descending = [params.pick == "longest" and name == "tokens" for name in order]
    best = solved.sort(order, descending=descending).unique(["place", "style"], keep="first", maintain_order=True)
    both = (
        best.filter(pl.col("style") == "long")
        .join(best.filter(pl.col("style") == "short"), on="place", suffix="_short")
        .sort("place")
    )
    used = both.head(params.size) if params.size else both
    long = _how_many_long(used, params)
    longs, shorts = used.head(long), used.tail(used.height - long)
    drawn = pl.concat(
        [
            longs.select("place", drawn=pl.lit("long"), chosen="lot"),
            shorts.select("place", drawn=pl.lit("short"), chosen="lot_short"),
        ]
    )
    decided = _decided(ranked, drawn, both.select("place", solved_by_both=pl.lit(value=True)))
    return Decided(decided, notes=_notes(params, traces, best, used, longs, shorts))


def _how_many_long(used: pl.DataFrame, params: MixParams) -> int:
    """Return how many problems, in drawn order, take their long trace so that the share comes out as asked."""
    if params.unit is Unit.PROBLEMS or used.is_empty():
        return int(params.long * used.height + 0.5)
    long = pl.concat([pl.Series([0]), used["tokens"].cum_sum()])
    short = used["tokens_short"].sum() - pl.concat([pl.Series([0]), used["tokens_short"].cum_sum()])
    total = (long + short).clip(lower_bound=1)
    return int((long / total - params.long).abs().arg_min() or 0)


def _decided(traces: pl.DataFrame, drawn: pl.DataFrame, both: pl.DataFrame) -> pl.DataFrame:
    """Return the decision on every trace, in the order of `traces`."""
    joined = traces.join(drawn, on="place", how="left", maintain_order="left").join(
        both, on="place", how="left", maintain_order="left"
    )
    style = pl.col("style")
    reason = (
        pl.when(pl.col("lot") == pl.col("chosen"))
        .then(None)
        .when(~style.is_in(["long", "short"]))
        .then(pl.lit("other_style"))
        .when(pl.col("outcome").ne_missing(Outcome.CORRECT.value))
        .then(pl.lit("not_correct"))
        .when(pl.col("solved_by_both").is_null())
        .then(pl.format("only_{}_solved", style))
        .when(pl.col("chosen").is_null())
        .then(pl.lit("over_size"))
        .when(pl.col("drawn") != style)
        .then(pl.format("drawn_{}", "drawn"))
        .otherwise(pl.lit("sibling_chosen"))
    )
    decided = joined.select("problem_id", "id", reason=reason)
    return decided.with_columns(kept=pl.col("reason").is_null())


def _notes(
    params: MixParams,
    traces: pl.DataFrame,
    best: pl.DataFrame,
    used: pl.DataFrame,
    longs: pl.DataFrame,
    shorts: pl.DataFrame,
) -> tuple[str, ...]:
    """Return sentences with the requested and the actual shares."""
    styles = best.group_by("place").agg(pl.len().alias("styles"), pl.col("style").first())
    counts = {
        "both": styles.filter(pl.col("styles") == 2).height,
        **{one: styles.filter(pl.col("styles") == 1, pl.col("style") == one).height for one in ("long", "short")},
    }
    notes = [
        f"mix: {used.height} problems of {traces['problem_id'].n_unique()}; solved by both styles {counts['both']}, "
        f"only long {counts['long']}, only short {counts['short']}"
    ]
    long_tokens, short_tokens = int(longs["tokens"].sum()), int(shorts["tokens_short"].sum())
    total = max(long_tokens + short_tokens, 1)
    notes.append(
        f"mix: {longs.height} long ({longs.height / max(used.height, 1):.1%} of problems, {long_tokens / total:.1%} of "
        f"tokens) and {shorts.height} short; asked for {params.long:.1%} long by {params.unit.value}"
    )
    if params.size and used.height < params.size:
        missing = params.size - used.height
        notes.append(f"shortfall: asked for {params.size} problems, {missing} too few were solved by both styles")
    if used.is_empty():
        notes.append("shortfall: no problem was solved by both styles, so the mix is empty")
    return tuple(notes)


STAGES.register("mix:long_short")(MixLongShort())
