"""`verify: auto`: a verdict for every trace, by the verifier its problem names. No trace is dropped here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import Field, JsonValue

from tracefactory.config import Pipeline, StageConfig
from tracefactory.core.errors import Mistake, UserError
from tracefactory.core.fingerprint import canonical
from tracefactory.core.op import OPS, Inputs, Rows, ShardOp, ShardResult
from tracefactory.core.schema import Frozen, Outcome, Trace, Verdict
from tracefactory.engine.worker import Worker
from tracefactory.sandbox.run import protections
from tracefactory.stages.sample.chat import SampleOp
from tracefactory.verification.base import VERIFIERS, VerifyTask, check_policy
from tracefactory.verification.pass_rates import pass_rate

PASS_RATES = ("pass_rate", "pass_rate_low", "pass_rate_high", "pass_samples")
RUNS_CODE = frozenset({"code", "program"})


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
        return {"verifiers": verifier_versions()}

    def check(self, stage: StageConfig, pipeline: Pipeline) -> list[Mistake]:
        assert isinstance(stage.params, VerifyParams)
        try:
            check_policy(stage.params.policy)
        except UserError as error:
            return list(error.mistakes)
        return []

    def measures(self, stage: StageConfig, pipeline: Pipeline) -> frozenset[str]:
        return pass_rates_of(stage, pipeline)

    async def run(self, stage: StageConfig, inputs: Inputs, worker: Worker) -> ShardResult:
        assert isinstance(stage.params, VerifyParams)
        traces = inputs.traces()
        verdicts = await verdicts_by_rule(traces, worker, canonical(stage.params.policy))
        kept = [trace.model_copy(update={"verdict": verdict}) for trace, verdict in zip(traces, verdicts, strict=True)]
        numbers = {
            outcome.value: float(sum(verdict.outcome is outcome for verdict in verdicts))
            for outcome in Outcome
            if any(verdict.outcome is outcome for verdict in verdicts)
        }
        code = any(trace.problem.verifier in RUNS_CODE for trace in traces)
        notes = [f"{stage.id}: {protections()}"] if code else []
        return ShardResult(rows_in=len(traces), kept=with_pass_rates(kept), numbers=numbers, notes=notes)


def verifier_versions() -> dict[str, str]:
    """Return the version of every verifier: a verdict may change with any of them."""
    return {name: VERIFIERS.get(name).version for name in VERIFIERS}


async def verdicts_by_rule(traces: Sequence[Trace], worker: Worker, policy: str = "{}") -> list[Verdict]:
    """Return the verdict of each trace by its problem's own verifier."""
    return await worker.verifiers.verify([task_of(trace, policy) for trace in traces])


def task_of(trace: Trace, policy: str = "{}") -> VerifyTask:
    """Return what a verifier looks at in a trace."""
    return VerifyTask(
        problem=trace.problem,
        answer_text=trace.answer_text,
        reasoning=trace.reasoning,
        thinking=trace.thinking,
        finish_reason=trace.finish_reason,
        policy=policy,
    )


def with_pass_rates(traces: Sequence[Trace]) -> list[Trace]:
    """Give every trace the pass rates of its problem, per teacher: rate, its Wilson interval at 95%, samples.

    The measures are `<teacher>/pass_rate`, `/pass_rate_low`, `/pass_rate_high` and `/pass_samples`. All samples of a
    problem are in one shard, so the rates are final here.
    """
    outcomes: dict[str, dict[str, list[Outcome]]] = {}
    for trace in traces:
        if trace.verdict is not None:
            of_problem = outcomes.setdefault(trace.problem.id, {})
            of_problem.setdefault(trace.teacher, []).append(trace.verdict.outcome)
    rates = {problem: _rates(by_teacher) for problem, by_teacher in outcomes.items()}
    return [
        trace.model_copy(update={"measures": {**trace.measures, **rates.get(trace.problem.id, {})}}) for trace in traces
    ]


def pass_rates_of(stage: StageConfig, pipeline: Pipeline) -> frozenset[str]:
    """Return the names under which a verify stage files pass rates: of every teacher that a stage above samples from.

    Imported traces name teachers of their own, known once they are read: `*`.
    """
    teachers: set[str] = set()
    ahead = list(stage.inputs)
    while ahead:
        above = pipeline.stage(ahead.pop())
        if isinstance(above.op, SampleOp):
            teachers.add(above.op.payer(above))
        elif not above.inputs:
            teachers.add("*")
        else:
            ahead += above.inputs
    return frozenset(f"{teacher}/{name}" for teacher in teachers for name in PASS_RATES)


def _rates(by_teacher: dict[str, list[Outcome]]) -> dict[str, float]:
    measures: dict[str, float] = {}
    for teacher, outcomes in sorted(by_teacher.items()):
        rate = pass_rate(outcomes)
        numbers = (rate.rate, rate.low, rate.high, float(rate.samples))
        measures |= {f"{teacher}/{name}": number for name, number in zip(PASS_RATES, numbers, strict=True)}
    return measures


OPS.register("verify:auto")(VerifyAuto())
