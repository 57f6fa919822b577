"""`filter`: a chain of filters, each one file; the first that drops a trace names the reason."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ConfigDict, Field

from tracefactory.config import Pipeline, StageConfig
from tracefactory.core.errors import Mistake
from tracefactory.core.op import OPS, Inputs, Rows, ShardOp, ShardResult
from tracefactory.core.schema import Dropped, Frozen, Trace
from tracefactory.engine.worker import Worker
from tracefactory.filters import FilterFailed, LoadedFilter, apply
from tracefactory.stages.known import not_measured
from tracefactory.store.stages import dropped_row


class FilterUse(Frozen):
    """One filter of the chain and its parameters. `line` is where it is written, and in no key."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    name: str
    params: Mapping[str, Any] = Field(default_factory=dict, alias="with")
    line: int | None = Field(default=None, exclude=True)


class ChainParams(Frozen):
    filters: tuple[FilterUse, ...] = Field(min_length=1)


class FilterChain(ShardOp):
    """Apply filters in the order written. A filter that fails on a row makes an error row, not a lost one."""

    verb, name, version = "filter", "chain", "1"
    Params = ChainParams
    takes, gives = Rows.TRACES, Rows.TRACES
    many_inputs = True

    def identity(self, stage: StageConfig, pipeline: Pipeline) -> dict[str, Any]:
        return {"filters": [pipeline.filters[use.name].digest for use in _chain(stage)]}

    def check(self, stage: StageConfig, pipeline: Pipeline) -> list[Mistake]:
        """Refuse a filter on a measure that no trace will have: it would drop every row for it."""
        return [
            mistake
            for use in _chain(stage)
            for mistake in not_measured(
                f"filter {use.name!r}: ",
                pipeline.filters[use.name].params_model.model_validate(use.params).reads_measures(),
                stage,
                pipeline,
                use.line,
            )
        ]

    async def run(self, stage: StageConfig, inputs: Inputs, worker: Worker) -> ShardResult:
        filters = [worker.pipeline.filters[use.name] for use in _chain(stage)]
        chain = [
            (one, one.params_model.model_validate(use.params)) for one, use in zip(filters, _chain(stage), strict=True)
        ]
        traces = inputs.traces()
        kept: list[Trace] = []
        dropped: list[Dropped] = []
        for trace in traces:
            why = _first_drop(trace, chain, stage.id)
            if why is None:
                kept.append(trace)
            else:
                dropped.append(why)
        return ShardResult(rows_in=len(traces), kept=kept, dropped=dropped)


def _chain(stage: StageConfig) -> tuple[FilterUse, ...]:
    assert isinstance(stage.params, ChainParams)
    return stage.params.filters


def _first_drop(trace: Trace, chain: list[tuple[LoadedFilter, Any]], stage_id: str) -> Dropped | None:
    for one, params in chain:
        try:
            decision = apply(one, trace, params)
        except FilterFailed as error:
            return dropped_row(trace, stage_id, f"{one.name}_failed", str(error), error=True)
        if not decision.keep:
            return dropped_row(trace, stage_id, decision.reason or one.name, decision.detail)
    return None


OPS.register("filter:chain")(FilterChain())
