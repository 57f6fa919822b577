"""`select: best`: the best few traces of every problem by any measure; a general stage, not a copy per measure."""

from __future__ import annotations

import polars as pl
from pydantic import Field

from tracefactory.core.errors import Mistake
from tracefactory.core.pipeline import Pipeline, StageSpec
from tracefactory.core.rows import Frozen, Kind
from tracefactory.core.stage import STAGES, Decided, Stage, Work
from tracefactory.stages._best import Best, best_of_each
from tracefactory.stages._measured import not_measured


class SelectParams(Frozen):
    """What to select by, and how many."""

    measure: str = Field(
        min_length=1, description="The measure, such as student/rank_surprisal, or a column of traces."
    )
    n: int = Field(default=1, ge=1, description="Traces to keep of each problem.")
    best: Best = Field(description="Which end of the measure is the better one.")


class SelectBest(Stage[SelectParams]):
    """Select within each problem. A trace without the measure is dropped as `not_measured`."""

    verb, name, version = "select", "best", "2"
    Params = SelectParams
    takes = frozenset({Kind.PROBLEMS, Kind.TRACES})
    work_on = Work.COLUMNS

    def check(self, stage: StageSpec[SelectParams], pipeline: Pipeline) -> list[Mistake]:
        return list(not_measured("measure: ", (stage.params.measure,), stage, pipeline))

    def reads(self, stage: StageSpec[SelectParams], pipeline: Pipeline) -> frozenset[str]:
        return frozenset({stage.params.measure})

    def decide(self, stage: StageSpec[SelectParams], frame: pl.DataFrame, pipeline: Pipeline) -> Decided:
        params = stage.params
        return Decided(best_of_each(frame, params.measure, params.n, params.best))


STAGES.register("select:best")(SelectBest())
