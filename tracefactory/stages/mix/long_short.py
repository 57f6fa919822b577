"""`mix: long_short`: each problem that both styles solved appears once, a set share of them with the long trace.

Mix Distillation (arXiv 2502.12143): small students learn best from 20% long and 80% short chains of thought over the
problems both teachers solved, each problem once, the size unchanged. Which problem gets which style is drawn by hash.
`mix: shares` mixes by teachers and other groups.
"""

from __future__ import annotations

from collections.abc import Mapping

import polars as pl
from pydantic import Field

from tracefactory.core.errors import Mistake
from tracefactory.core.pipeline import Pipeline, StageSpec
from tracefactory.core.rows import Frozen
from tracefactory.core.stage import STAGES, Decided, Facts, Stage, Work
from tracefactory.stages.mix._shares import Draw, Pick, Problems, Unit, draw
from tracefactory.stages.mix.shares import shared


class MixParams(Frozen):
    """The shares of the two styles, which add up to 1, and which traces take them."""

    long: float = Field(
        default=0.2,
        ge=0,
        le=1,
        description="Share of long traces. The default is that of arXiv 2502.12143; on a task that a student could not "
        "do at once, it taught less than long traces alone (docs/teach.md).",
    )
    short: float = Field(default=0.8, ge=0, le=1, description="Share of short traces.")
    unit: Unit = Field(default=Unit.PROBLEMS, description="What the shares are of: problems, or completion tokens.")
    problems: Problems = Field(
        default="all",
        description="Problems of the mix: all takes those that both styles solved; any takes those that at least one "
        "style solved, with its trace where there is no other, so that the shares can miss those asked for.",
    )
    size: int | None = Field(default=None, ge=1, description="Problems in the mix; null is all that were solved so.")
    pick: Pick = Field(
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
        return mix(shared(frame, "style"), stage.params)


def mix(traces: pl.DataFrame, params: MixParams) -> Decided:
    """Decide which trace of each problem is in the mix.

    Args:
        traces: one row per trace: problem_id, id, group (its style), tokens, outcome.
        params: shares, unit, size, pick and seed.
    """
    shares = {"long": params.long, "short": params.short}
    return draw(traces, Draw("style", shares, params.unit, params.size, params.pick, params.seed, params.problems))


STAGES.register("mix:long_short")(MixLongShort())
