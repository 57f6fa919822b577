"""`select: best`: the best few rows by any measure, of every problem or of all; one stage for every measure."""

from __future__ import annotations

from typing import Literal

import polars as pl
import pyarrow as pa
from pydantic import Field

from tracefactory.core.columns import ARROW
from tracefactory.core.errors import Mistake
from tracefactory.core.pipeline import Pipeline, StageSpec
from tracefactory.core.rows import Frozen, Kind
from tracefactory.core.stage import STAGES, Decided, Stage, Work
from tracefactory.core.tables import TABLE_OF, schema_of
from tracefactory.stages._best import Best, best_of_each
from tracefactory.stages._measured import columns_above, kind_taken, not_measured


class SelectParams(Frozen):
    """What to select by, and how many."""

    measure: str = Field(
        min_length=1, description="The measure, such as student/rank_surprisal, or a column of the rows."
    )
    n: int = Field(default=1, ge=1, description="Rows to keep, of each problem or of all.")
    best: Best = Field(description="Which end of the measure is the better one.")
    per: Literal["problem", "all"] = Field(
        default="problem", description="Keep the best traces of each problem, or the best of all rows."
    )


class SelectBest(Stage[SelectParams]):
    """Select within each problem, or among all rows. A row without the measure is dropped as `not_measured`."""

    verb, name, version = "select", "best", "2"
    Params = SelectParams
    takes = frozenset({Kind.PROBLEMS, Kind.TRACES})

    def work(self, stage: StageSpec[SelectParams], pipeline: Pipeline) -> Work:
        return Work.TABLE if stage.params.per == "all" else Work.COLUMNS

    def check(self, stage: StageSpec[SelectParams], pipeline: Pipeline) -> list[Mistake]:
        name, kind = stage.params.measure, kind_taken(stage, pipeline)
        if kind is Kind.PROBLEMS and stage.params.per == "problem":
            return [Mistake("per: every problem is a single row", stage.file, stage.line, hint="write `per: all`")]
        if mistakes := list(not_measured("measure: ", (name,), stage, pipeline)):
            return mistakes
        own = {one.name: one.type for one in schema_of(TABLE_OF[kind])} if kind in TABLE_OF else {}
        own |= {one.name: ARROW[one.type] for one in columns_above(stage, pipeline) or ()}
        wrong = name in own and not pa.types.is_primitive(own[name])
        return [Mistake(f"measure: {name!r} is no number", stage.file, stage.line)] if wrong else []

    def reads(self, stage: StageSpec[SelectParams], pipeline: Pipeline) -> frozenset[str]:
        return frozenset({stage.params.measure})

    def decide(self, stage: StageSpec[SelectParams], frame: pl.DataFrame, pipeline: Pipeline) -> Decided:
        params = stage.params
        groups = ["problem_id"] if params.per == "problem" else []
        return Decided(best_of_each(frame, params.measure, params.n, params.best, groups))


STAGES.register("select:best")(SelectBest())
