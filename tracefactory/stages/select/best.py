"""`select: best`: the best few traces of every problem by any measure; a general stage, not a copy per measure."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from tracefactory.config import Pipeline, StageConfig
from tracefactory.core.errors import Mistake
from tracefactory.core.op import OPS, Inputs, Rows, ShardOp, ShardResult
from tracefactory.core.schema import Frozen
from tracefactory.engine.worker import Worker
from tracefactory.stages.known import not_measured
from tracefactory.store.stages import dropped_row
from tracefactory.students.select import best_per_problem, by_measure


class SelectParams(Frozen):
    """Keep `n` traces per problem with the lowest or highest `measure`, such as `student/rank_surprisal`."""

    measure: str = Field(min_length=1)
    n: int = Field(default=1, ge=1)
    best: Literal["lowest", "highest"]


class SelectBest(ShardOp):
    """Select within each problem. A trace without the measure is dropped as `not_measured`."""

    verb, name, version = "select", "best", "1"
    Params = SelectParams
    takes, gives = Rows.TRACES, Rows.TRACES
    many_inputs = True

    def check(self, stage: StageConfig, pipeline: Pipeline) -> list[Mistake]:
        assert isinstance(stage.params, SelectParams)
        return list(not_measured("measure: ", (stage.params.measure,), stage, pipeline))

    async def run(self, stage: StageConfig, inputs: Inputs, worker: Worker) -> ShardResult:
        params = stage.params
        assert isinstance(params, SelectParams)
        traces = inputs.traces()
        selection = best_per_problem(traces, by_measure(params.measure), params.n, params.best)
        dropped = [dropped_row(one.trace, stage.id, one.reason, one.detail) for one in selection.dropped]
        return ShardResult(rows_in=len(traces), kept=selection.kept, dropped=dropped)


OPS.register("select:best")(SelectBest())
