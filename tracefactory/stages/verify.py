"""`verify`: a verdict for every trace, by the verifier its problem names. No trace is dropped here."""

from __future__ import annotations

from typing import Any

from pydantic import Field, JsonValue

from tracefactory.config import Pipeline, StageConfig
from tracefactory.fingerprint import canonical
from tracefactory.op import OPS, Inputs, Rows, ShardOp, ShardResult
from tracefactory.schema import Frozen
from tracefactory.verifiers import VERIFIERS, VerifyTask
from tracefactory.worker import Worker


class VerifyParams(Frozen):
    """`policy` sets parameters of the verifiers (rounding, units ...) over what each problem asks for."""

    policy: dict[str, JsonValue] = Field(default_factory=dict)


class VerifyAuto(ShardOp):
    """Verify by the problem's own verifier: math, choice, exact, reasoning_gym, code ..."""

    verb, name, version = "verify", "auto", "1"
    Params = VerifyParams
    takes, gives = Rows.TRACES, Rows.TRACES
    many_inputs = True

    def identity(self, stage: StageConfig, pipeline: Pipeline) -> dict[str, Any]:
        return {"verifiers": {name: VERIFIERS.get(name).version for name in VERIFIERS}}

    async def run(self, stage: StageConfig, inputs: Inputs, worker: Worker) -> ShardResult:
        assert isinstance(stage.params, VerifyParams)
        traces, policy = inputs.traces(), canonical(stage.params.policy)
        verdicts = await worker.verifiers.verify(
            [
                VerifyTask(
                    problem=trace.problem,
                    answer_text=trace.answer_text,
                    reasoning=trace.reasoning,
                    thinking=trace.thinking,
                    finish_reason=trace.finish_reason,
                    policy=policy,
                )
                for trace in traces
            ]
        )
        kept = [trace.model_copy(update={"verdict": verdict}) for trace, verdict in zip(traces, verdicts, strict=True)]
        outcomes: dict[str, float] = {}
        for verdict in verdicts:
            outcomes[verdict.outcome.value] = outcomes.get(verdict.outcome.value, 0) + 1
        return ShardResult(rows_in=len(traces), kept=kept, numbers=outcomes)


OPS.register("verify:auto")(VerifyAuto())
