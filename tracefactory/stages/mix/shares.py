"""`mix: shares`: each problem that every group solved appears once, with a trace of a group drawn by set shares.

Groups are the values of a column: styles, teachers, prompts, or a column that a stage has added. Mix-Large of Mix
Distillation (arXiv 2502.12143) is 20% of a large teacher and 80% of a small one: `by: teacher`.
"""

from __future__ import annotations

from collections.abc import Mapping

import polars as pl
import pyarrow as pa
from pydantic import Field

from tracefactory.core.columns import ARROW
from tracefactory.core.errors import Mistake, nearest
from tracefactory.core.pipeline import Pipeline, StageSpec
from tracefactory.core.refs import find_refs
from tracefactory.core.rows import Frozen, Kind
from tracefactory.core.stage import STAGES, Decided, Facts, Stage, Work, stage_of
from tracefactory.core.tables import Table, schema_of
from tracefactory.stages._measured import columns_above, not_measured
from tracefactory.stages.mix._shares import Draw, Pick, Problems, Unit, draw


class SharesParams(Frozen):
    """The groups and their shares, which add up to 1, and which traces take them."""

    by: str = Field(
        min_length=1,
        description="The column whose values are the groups: style, teacher, prompt, stage, or an added column.",
    )
    shares: dict[str, float] = Field(
        min_length=1, description="The share of each group, such as {large: 0.2, small: 0.8}."
    )
    unit: Unit = Field(default=Unit.PROBLEMS, description="What the shares are of: problems, or completion tokens.")
    problems: Problems = Field(
        default="all",
        description="Problems of the mix: all takes those that every group solved; any takes those that at least one "
        "group solved, with its trace where there is no other, so that the shares can miss those asked for.",
    )
    size: int | None = Field(default=None, ge=1, description="Problems in the mix; null is all that were solved so.")
    pick: Pick = Field(
        default="drawn", description="Which trace is taken for a problem that a group solved several times."
    )
    seed: int = Field(default=0, ge=0, description="Another seed draws another mix.")


class MixShares(Stage[SharesParams]):
    """Mix by any grouping of traces. Needs verdicts: only correct traces count as solved."""

    verb, name, version = "mix", "shares", "1"
    Params = SharesParams
    work_on = Work.TABLE

    def check(self, stage: StageSpec[SharesParams], pipeline: Pipeline) -> list[Mistake]:
        shares, total = stage.params.shares, sum(stage.params.shares.values())
        mistakes = [Mistake(f"shares: {one} is negative: {share:g}") for one, share in shares.items() if share < 0]
        if abs(total - 1) > 1e-9:
            mistakes.append(Mistake(f"shares: they must add up to 1, not {total:g}"))
        mistakes += not_measured("by: ", (stage.params.by,), stage, pipeline)
        types = {one.name: one.type for one in schema_of(Table.TRACES)}
        types |= {one.name: ARROW[one.type] for one in columns_above(stage, pipeline) or ()}
        if pa.types.is_nested(types.get(stage.params.by, pa.string())):
            mistakes.append(Mistake(f"by: {stage.params.by!r} has no single value to group by", hint="such as style"))
        known = _groups_above(stage, pipeline)
        for one in shares:
            if known and one not in known:
                message = f"shares: no stage above makes traces with {stage.params.by} {one!r}"
                mistakes.append(Mistake(message, hint=nearest(one, known)))
        return mistakes

    def facts(self, stage: StageSpec[SharesParams], numbers: Mapping[str, float]) -> Facts:
        return Facts(shares=stage.params.shares, unit=stage.params.unit.value, shares_by=stage.params.by)

    def reads(self, stage: StageSpec[SharesParams], pipeline: Pipeline) -> frozenset[str]:
        return frozenset({stage.params.by, "completion_tokens", "verdict"})

    def decide(self, stage: StageSpec[SharesParams], frame: pl.DataFrame, pipeline: Pipeline) -> Decided:
        params = stage.params
        wanted = Draw(params.by, params.shares, params.unit, params.size, params.pick, params.seed, params.problems)
        return draw(shared(frame, params.by), wanted)


def shared(frame: pl.DataFrame, by: str) -> pl.DataFrame:
    """Return what `draw` looks at: problem_id, id, group, tokens and outcome.

    Args:
        frame: traces with their verdicts, null where a trace has none.
        by: the column of the groups.
    """
    verdict = pl.col("verdict")
    outcome = verdict.struct.field("outcome") if frame.schema["verdict"] == pl.Struct else pl.lit(None, pl.String)
    group = pl.col(by).cast(pl.String)
    return frame.select("problem_id", "id", group=group, tokens="completion_tokens", outcome=outcome)


def _groups_above(stage: StageSpec[SharesParams], pipeline: Pipeline) -> set[str]:
    """Return the stages, teachers, prompts or styles that traces can have; empty where that is unknown."""
    above = pipeline.above(stage)
    teachers = {name for one in above for name in stage_of(one).teachers(one, pipeline)}
    if "*" in teachers:
        return set()
    prompts = {ref.name for one in above for ref in find_refs(type(one.params), one.params) if ref.kind == "prompt"}
    styles = {pipeline.prompts[name].style for name in prompts if name in pipeline.prompts}
    stages = {one.id for one in above if stage_of(one).makes is Kind.TRACES}
    return {"stage": stages, "teacher": teachers, "prompt": prompts, "style": styles}.get(stage.params.by, set())


STAGES.register("mix:shares")(MixShares())
