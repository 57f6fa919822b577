"""`sample: reverse_speculative`: reverse speculative decoding, N runs per problem, the shortest accepted one kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import polars as pl
from pydantic import Field

from tracefactory.core.columns import VERDICT, Column
from tracefactory.core.decisions import KEEP, Decision, Made, drop
from tracefactory.core.pipeline import Pipeline, StageSpec
from tracefactory.core.rows import Outcome, Thinking, Trace
from tracefactory.core.stage import STAGES, Batch, Result, Services
from tracefactory.decoders.reverse_speculative import ReverseSpeculative
from tracefactory.stages._best import best_of_each
from tracefactory.stages._sampling import spent
from tracefactory.stages._verdicts import outcome_counts, verdicts_by_rule, verifier_versions
from tracefactory.stages.sample.family import BLOCKS, DecodedParams, SampleDecoded, share_name, token_counts


class ReverseSpeculativeParams(DecodedParams, ReverseSpeculative):
    """Reverse speculative decoding, and which of a problem's runs are accepted; values of the authors' code.

    A run is accepted when it ended by itself, closed its thinking once, has at most `max_fallback` of its tokens from
    the student, states an answer, and the answer is correct.
    """

    samples: int = Field(default=16, ge=1, description="Runs for each problem.")
    max_tokens: int = Field(default=7168, ge=1, description="Tokens of one run, reasoning and answer together.")
    max_fallback: float = Field(default=0.5, ge=0, le=1, description="Largest share of tokens from the student.")
    thinking: Literal["closed", "any"] = Field(default="closed", description="Whether thinking must be closed once.")
    keep: Literal["shortest", "all"] = Field(
        default="shortest", description="Keep the accepted run of the fewest tokens of each problem, or all of them."
    )
    servers: Literal["two", "one"] = Field(
        default="two",
        description="`one` has two `use: vllm` models decode inside of one vLLM server, the teacher as the student's "
        "draft model: the fastest form, for vLLM 0.32 alone, and for models of one vocabulary.",
    )


Spec = StageSpec[ReverseSpeculativeParams]


class SampleReverseSpeculative(SampleDecoded[ReverseSpeculativeParams]):
    """Reverse speculative decoding: N runs per problem, of which the shortest accepted one is passed on."""

    name, version = "reverse_speculative", "2"
    Params = ReverseSpeculativeParams
    decoder = ReverseSpeculative

    def one_server(self, stage: Spec) -> bool:
        return stage.params.servers == "one"

    def uses(self, stage: Spec, pipeline: Pipeline) -> Mapping[str, Any]:
        used = super().uses(stage, pipeline)
        return {**used, "versions": {**used.get("versions", {}), **verifier_versions(stage, pipeline)}}

    def columns(self, stage: Spec, pipeline: Pipeline) -> Sequence[Column]:
        return [*super().columns(stage, pipeline), VERDICT]

    async def run(self, stage: Spec, batch: Batch, services: Services) -> Result:
        made, records = await self.sample(stage, batch, services)
        written = [one.row for one in made if one.decision.keep]
        verdicts = await verdicts_by_rule(written, services)
        runs = {run.id: run.model_copy(update={"verdict": one}) for run, one in zip(written, verdicts, strict=True)}
        decisions = {run.id: decision_on(run, stage.params, run.measures[share_name(stage)]) for run in runs.values()}
        if stage.params.keep == "shortest":
            decisions |= _not_shortest([run for run in runs.values() if decisions[run.id].keep])
        kept = [run for run in runs.values() if decisions[run.id].keep]
        return Result(
            made=[Made(runs[one.row.id], decisions[one.row.id]) if one.row.id in runs else one for one in made],
            numbers={
                **spent(records, services.run_id),
                **outcome_counts(verdicts),
                **token_counts(list(runs.values()), kept, stage),
            },
        )


def decision_on(run: Trace, params: ReverseSpeculativeParams, share: float) -> Decision:
    """Return whether a verified run is accepted, and why not.

    The order is that of the authors' code; `share` is the share of its tokens that the student wrote.
    """
    assert run.verdict is not None
    if run.finish_reason != "stop":
        return drop("not_finished", f"after {run.completion_tokens} tokens")
    if params.thinking == "closed" and (run.thinking is not Thinking.CLOSED or run.measures[BLOCKS.name] != 1):
        return drop("thinking_not_closed_once", f"closed {run.measures[BLOCKS.name]:.0f} times")
    if share > params.max_fallback:
        return drop("fallback_share", f"{share:.3f} of the tokens are the student's, at most {params.max_fallback:g}")
    if run.verdict.extracted is None:
        return drop("no_answer", run.verdict.method)
    if run.verdict.outcome is not Outcome.CORRECT:
        return drop(run.verdict.outcome.value, f"found {run.verdict.extracted}")
    return KEEP


def _not_shortest(accepted: Sequence[Trace]) -> dict[str, Decision]:
    """Return the decisions on accepted runs that are not the shortest of their problem."""
    rows = [(run.problem_id, run.id, run.completion_tokens) for run in accepted]
    schema = {"problem_id": pl.String, "id": pl.String, "tokens": pl.Int64}
    ranked = best_of_each(pl.DataFrame(rows, schema=schema, orient="row"), "tokens", 1, "lowest")
    lost = ranked.filter(~pl.col("kept")).select("id", "detail")
    return {row_id: drop("not_shortest", detail) for row_id, detail in lost.iter_rows()}


STAGES.register("sample:reverse_speculative")(SampleReverseSpeculative())
