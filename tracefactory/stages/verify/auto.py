"""`verify: auto`: a verdict for every trace, by the verifier its problem names. No trace is dropped here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import Field, JsonValue

from tracefactory.core.columns import Column
from tracefactory.core.errors import Mistake, UserError, nearest
from tracefactory.core.fingerprint import canonical
from tracefactory.core.pipeline import Pipeline, StageSpec
from tracefactory.core.rows import Frozen, Trace, Verdict
from tracefactory.core.stage import STAGES, Batch, Result, RowReader, Services, Stage
from tracefactory.core.upgrade import Upgrade
from tracefactory.sandbox.protections import protections
from tracefactory.stages._upgrade import upgrade_of_verdicts
from tracefactory.stages._verdicts import (
    judgements,
    outcome_counts,
    refused_programs,
    task_of,
    verdict_columns,
    verdicts_by_rule,
    verifier_versions,
)
from tracefactory.verification.base import VERIFIERS, check_policy, runs_code
from tracefactory.verification.pool import quick_verdict


class VerifyParams(Frozen):
    """How to verify."""

    verifier: str | None = Field(
        default=None, description="The verifier to use for every trace; by default the one that its problem names."
    )
    policy: dict[str, JsonValue] = Field(
        default_factory=dict,
        description="Parameters of the verifiers (rounding, units ...), over what each problem asks for.",
    )


class VerifyAuto(Stage[VerifyParams]):
    """Verify by the verifier of each problem: math, choice, exact, reasoning_gym, code ..."""

    verb, name, version = "verify", "auto", "1"
    Params = VerifyParams

    def uses(self, stage: StageSpec[VerifyParams], pipeline: Pipeline) -> Mapping[str, Any]:
        return {"versions": verifier_versions(stage, pipeline, stage.params.verifier)}

    def check(self, stage: StageSpec[VerifyParams], pipeline: Pipeline) -> list[Mistake]:
        named = stage.params.verifier
        if named is not None and named not in VERIFIERS:
            return [Mistake(f"verifier: there is no verifier {named!r}", hint=nearest(named, VERIFIERS))]
        try:
            check_policy(stage.params.policy)
        except UserError as error:
            return list(error.mistakes)
        return []

    def refusal(self, stage: StageSpec[VerifyParams], pipeline: Pipeline) -> Mistake | None:
        return refused_programs(stage, pipeline, stage.params.verifier)

    def columns(self, stage: StageSpec[VerifyParams], pipeline: Pipeline) -> Sequence[Column]:
        return verdict_columns(stage, pipeline)

    def upgrade(
        self, stage: StageSpec[VerifyParams], pipeline: Pipeline, before: Mapping[str, Any], rows: RowReader | None
    ) -> Upgrade:
        policy, named = canonical(stage.params.policy), stage.params.verifier

        def again(samples: Sequence[Trace]) -> list[Verdict | None]:
            return [quick_verdict(task_of(trace, policy, named)) for trace in samples]

        return upgrade_of_verdicts(before, verifier_versions(stage, pipeline, named), rows, again)

    async def run(self, stage: StageSpec[VerifyParams], batch: Batch, services: Services) -> Result:
        traces, params = batch.traces, stage.params
        verdicts = await verdicts_by_rule(traces, services, canonical(params.policy), params.verifier)
        code = any(runs_code(params.verifier or trace.problem.verifier) for trace in traces)
        return Result(
            judged=judgements(traces, verdicts),
            numbers=outcome_counts(verdicts),
            notes=[f"{stage.id}: {protections()}"] if code else [],
        )


STAGES.register("verify:auto")(VerifyAuto())
