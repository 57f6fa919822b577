"""`filter`: a chain of filters, each one file; the first that drops a row names the reason."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import polars as pl
from pydantic import ConfigDict, Field

from tracefactory.core.decisions import KEEP, Decision, Judgement, fail
from tracefactory.core.errors import Mistake
from tracefactory.core.pipeline import Pipeline, StageSpec
from tracefactory.core.rows import Frozen, Kind, Row
from tracefactory.core.stage import STAGES, Batch, Decided, Result, Services, Stage, Work
from tracefactory.core.tables import frame_of
from tracefactory.filters import FilterFailed, LoadedFilter, Params, apply
from tracefactory.filters.loader import first_rule, with_rules
from tracefactory.stages._measured import kind_taken, not_measured


class FilterUse(Frozen):
    """One filter of the chain and its parameters. `line` is where it is written, and in no key."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    name: str = Field(description="The filter, by its file name in filters/.")
    params: Mapping[str, Any] = Field(default_factory=dict, alias="with", description="Its parameters.")
    line: int | None = Field(default=None, exclude=True, description="Where it is written.")


class ChainParams(Frozen):
    """The filters, in the order they are applied in."""

    filters: tuple[FilterUse, ...] = Field(min_length=1, description="The filters, in the order they are applied in.")


class FilterChain(Stage[ChainParams]):
    """Apply filters in the order written. A filter that fails on a row makes a failed row, not a lost one.

    Where all filters work on columns, no text is read.
    """

    verb, name, version = "filter", "chain", "2"
    Params = ChainParams
    takes = frozenset({Kind.PROBLEMS, Kind.TRACES})

    def work(self, stage: StageSpec[ChainParams], pipeline: Pipeline) -> Work:
        on_columns = all(pipeline.filters[use.name].on_columns for use in stage.params.filters)
        return Work.COLUMNS if on_columns else Work.ROWS

    def key_params(self, stage: StageSpec[ChainParams], pipeline: Pipeline) -> Mapping[str, Any]:
        uses = [
            {"name": loaded.name, "with": params.model_dump(mode="json", by_alias=True, exclude_defaults=True)}
            for loaded, params in _chain(stage, pipeline)
        ]
        return {"filters": uses}

    def uses(self, stage: StageSpec[ChainParams], pipeline: Pipeline) -> Mapping[str, Any]:
        return {"filters": [loaded.digest for loaded, _ in _chain(stage, pipeline)]}

    def check(self, stage: StageSpec[ChainParams], pipeline: Pipeline) -> list[Mistake]:
        """Refuse a filter for other rows, and one on a measure that no row will have: it would drop every row."""
        taken, mistakes = kind_taken(stage, pipeline), []
        for use, (loaded, params) in zip(stage.params.filters, _chain(stage, pipeline), strict=True):
            what = f"filter {use.name!r}: "
            if loaded.kind is not None and loaded.kind is not taken and taken is not Kind.NONE:
                message = f"{what}it works on {loaded.kind}, and the stage is given {taken}"
                mistakes.append(Mistake(message, stage.file, use.line or stage.line))
            wanted = _columns_of(loaded, params) if loaded.on_columns else params.reads_measures()
            mistakes += not_measured(what, wanted, stage, pipeline, use.line)
        return mistakes

    def reads(self, stage: StageSpec[ChainParams], pipeline: Pipeline) -> frozenset[str]:
        return frozenset(name for one in _chain(stage, pipeline) for name in _columns_of(*one))

    def decide(self, stage: StageSpec[ChainParams], frame: pl.DataFrame, pipeline: Pipeline) -> Decided:
        rules = [rule for loaded, params in _chain(stage, pipeline) for rule in loaded.rules(params)]
        found = with_rules(frame, rules)
        return Decided(found.select("problem_id", "id", pl.col("reason").is_null().alias("kept"), "reason", "detail"))

    async def run(self, stage: StageSpec[ChainParams], batch: Batch, services: Services) -> Result:
        chain = list(_chain(stage, services.pipeline))
        frame = frame_of(batch.rows)
        by_rules = [first_rule(frame, one.rules(params)) if one.on_columns else None for one, params in chain]
        judged = []
        for number, row in enumerate(batch.rows):
            decisions = (
                _decide(*one, row) if decided is None else decided[number]
                for one, decided in zip(chain, by_rules, strict=True)
            )
            judged.append(Judgement(row.id, next((one for one in decisions if not one.keep), KEEP)))
        return Result(judged=judged)


def _chain(stage: StageSpec[ChainParams], pipeline: Pipeline) -> Iterator[tuple[LoadedFilter, Params]]:
    for use in stage.params.filters:
        loaded: LoadedFilter = pipeline.filters[use.name]
        yield loaded, loaded.params_model.model_validate(use.params)


def _columns_of(loaded: LoadedFilter, params: Params) -> list[str]:
    """Return the columns that the rules of a filter look at."""
    expressions = [one for rule in loaded.rules(params) for one in (rule.when, rule.detail)]
    return list(dict.fromkeys(name for one in expressions for name in one.meta.root_names()))


def _decide(loaded: LoadedFilter, params: Params, row: Row) -> Decision:
    try:
        return apply(loaded, row, params)
    except FilterFailed as error:
        return fail(f"{loaded.name}_failed", str(error), owed=False)


STAGES.register("filter:chain")(FilterChain())
