"""`mix: long_short`: each problem that both styles solved appears once, a set share of them with the long trace.

Mix Distillation (arXiv 2502.12143): small students learn best from 20% long and 80% short chains of thought over the
problems both teachers solved, each problem once, the size unchanged. Which problem gets which style is drawn by hash.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

import polars as pl
from pydantic import Field

from tracefactory.config import Pipeline, StageConfig
from tracefactory.core.errors import Mistake
from tracefactory.core.fingerprint import digest
from tracefactory.core.op import OPS, Rows, ShardResult, WholeInput, WholeOp, WholeResult
from tracefactory.core.schema import Dropped, Frozen, Outcome, Trace
from tracefactory.engine.worker import Worker
from tracefactory.store.stages import dropped_row


class Unit(StrEnum):
    """What a share is a share of."""

    PROBLEMS = "problems"
    TOKENS = "tokens"


class MixParams(Frozen):
    """`long` and `short` are shares and add up to 1; `size` asks for so many problems (default: all there are).

    `pick` says which trace stands for a problem that a style solved several times.
    """

    long: float = Field(default=0.2, ge=0, le=1)
    short: float = Field(default=0.8, ge=0, le=1)
    unit: Unit = Unit.PROBLEMS
    size: int | None = Field(default=None, ge=1)
    pick: Literal["drawn", "shortest", "longest"] = "drawn"
    seed: int = Field(default=0, ge=0)


@dataclass(frozen=True)
class Mixed:
    """The decision for the whole set: chosen trace per problem, why each other trace is not in it, and notes."""

    chosen: frozenset[str]
    reasons: Mapping[str, str]
    notes: tuple[str, ...]


class MixLongShort(WholeOp):
    """Mix by the style of the prompt that made a trace. Needs verdicts: only correct traces count as solved."""

    verb, name, version = "mix", "long_short", "1"
    Params = MixParams
    takes, gives = Rows.TRACES, Rows.TRACES
    many_inputs = True

    def check(self, stage: StageConfig, pipeline: Pipeline) -> list[Mistake]:
        params = _params(stage)
        if abs(params.long + params.short - 1) > 1e-9:
            return [Mistake(f"stage {stage.id!r}: long + short must be 1, not {params.long + params.short:g}")]
        return []

    def run_whole(
        self, stage: StageConfig, inputs: Mapping[str, WholeInput], shards: int | None, worker: Worker
    ) -> WholeResult:
        assert shards is not None
        columns = [
            pl.col("id"),
            pl.col("problem").struct.field("id").alias("problem"),
            pl.col("style"),
            pl.col("completion_tokens").alias("tokens"),
            pl.col("verdict").struct.field("outcome").alias("outcome"),
        ]
        frame = pl.concat([source.columns(*columns) for source in inputs.values()])
        mixed = mix(frame, _params(stage))
        return WholeResult(shards=shards, results=_deal(mixed, inputs, shards, stage.id))


def mix(traces: pl.DataFrame, params: MixParams) -> Mixed:
    """Decide which trace of each problem is in the mix.

    Args:
        traces: one row per trace: id, problem, style, tokens, outcome.
        params: shares, unit, size, pick and seed.
    """
    ranked = traces.with_columns(
        pl.col("id").map_elements(lambda one: _draw(params.seed, one), return_dtype=pl.String).alias("lot"),
        pl.col("problem").map_elements(lambda one: _draw(params.seed, one), return_dtype=pl.String).alias("place"),
    )
    solved = ranked.filter(pl.col("outcome") == Outcome.CORRECT.value, pl.col("style").is_in(["long", "short"]))
    order = {"drawn": ["lot"], "shortest": ["tokens", "lot"], "longest": ["tokens", "lot"]}[params.pick]
    descending = [params.pick == "longest" and name == "tokens" for name in order]
    best = solved.sort(order, descending=descending).group_by("problem", "style", maintain_order=True).first()
    both = (
        best.filter(pl.col("style") == "long")
        .join(best.filter(pl.col("style") == "short"), on="problem", suffix="_short")
        .sort("place")
    )
    used = both.head(params.size) if params.size else both
    long = _how_many_long(used, params)
    longs, shorts = used.head(long), used.tail(used.height - long)
    chosen = frozenset([*longs["id"].to_list(), *shorts["id_short"].to_list()])
    reasons = _reasons(ranked, chosen, set(both["problem"]), set(used["problem"]))
    return Mixed(chosen, reasons, _notes(params, traces, best, used, longs, shorts))


def _draw(seed: int, what: str) -> str:
    return digest({"seed": seed, "draw": what})


def _how_many_long(used: pl.DataFrame, params: MixParams) -> int:
    """Return how many problems, in drawn order, take their long trace so that the share comes out as asked."""
    if params.unit is Unit.PROBLEMS or used.is_empty():
        return int(params.long * used.height + 0.5)
    long = [0, *used["tokens"].cum_sum().to_list()]
    short_total = int(used["tokens_short"].sum())
    short = [short_total - taken for taken in [0, *used["tokens_short"].cum_sum().to_list()]]
    shares = [one / max(one + two, 1) for one, two in zip(long, short, strict=True)]
    return min(range(len(shares)), key=lambda count: abs(shares[count] - params.long))


def _reasons(traces: pl.DataFrame, chosen: frozenset[str], both: set[str], used: set[str]) -> dict[str, str]:
    reasons = {}
    drawn_style = {row["problem"]: row["style"] for row in traces.filter(pl.col("id").is_in(chosen)).to_dicts()}
    for row in traces.filter(~pl.col("id").is_in(chosen)).to_dicts():
        if row["style"] not in ("long", "short"):
            reasons[row["id"]] = "other_style"
        elif row["outcome"] != Outcome.CORRECT.value:
            reasons[row["id"]] = "not_correct"
        elif row["problem"] not in both:
            reasons[row["id"]] = f"only_{row['style']}_solved"
        elif row["problem"] not in used:
            reasons[row["id"]] = "over_size"
        elif drawn_style[row["problem"]] != row["style"]:
            reasons[row["id"]] = f"drawn_{drawn_style[row['problem']]}"
        else:
            reasons[row["id"]] = "sibling_chosen"
    return reasons


def _notes(
    params: MixParams,
    traces: pl.DataFrame,
    best: pl.DataFrame,
    used: pl.DataFrame,
    longs: pl.DataFrame,
    shorts: pl.DataFrame,
) -> tuple[str, ...]:
    """Say what was asked and what came, exactly."""
    by_style = {style: set(best.filter(pl.col("style") == style)["problem"]) for style in ("long", "short")}
    notes = [
        f"mix: {used.height} problems of {traces['problem'].n_unique()}; "
        f"solved by both styles {len(by_style['long'] & by_style['short'])}, "
        f"only long {len(by_style['long'] - by_style['short'])}, only short {len(by_style['short'] - by_style['long'])}"
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


def _deal(mixed: Mixed, inputs: Mapping[str, WholeInput], shards: int, stage_id: str) -> Iterator[ShardResult]:
    """Apply the decision shard by shard."""
    parts = zip(*(source.shards(shards) for source in inputs.values()), strict=True)
    for index, part in enumerate(parts):
        traces = [row for rows in part for row in rows if isinstance(row, Trace)]
        kept, dropped = _split(traces, mixed, stage_id)
        yield ShardResult(rows_in=len(traces), kept=kept, dropped=dropped, notes=mixed.notes if index == 0 else ())


def _split(traces: Sequence[Trace], mixed: Mixed, stage_id: str) -> tuple[list[Trace], list[Dropped]]:
    kept = [trace for trace in traces if trace.id in mixed.chosen]
    dropped = [dropped_row(one, stage_id, mixed.reasons[one.id]) for one in traces if one.id not in mixed.chosen]
    return kept, dropped


def _params(stage: StageConfig) -> MixParams:
    assert isinstance(stage.params, MixParams)
    return stage.params


OPS.register("mix:long_short")(MixLongShort())
