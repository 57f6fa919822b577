"""What the `verify:` operations share: verdicts by rule, and the pass rates that follow from verdicts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tracefactory.core.columns import VERDICT, Column, Type
from tracefactory.core.decisions import KEEP, Judgement
from tracefactory.core.errors import Mistake, UserError
from tracefactory.core.pipeline import Pipeline, StageSpec
from tracefactory.core.rows import Outcome, Trace, Verdict
from tracefactory.core.stage import Services, stage_of, verify
from tracefactory.reading.base import SOURCES
from tracefactory.sandbox.protections import require
from tracefactory.verification.base import VERIFIERS, VerifyTask, runs_code
from tracefactory.verification.pass_rates import pass_rate

PASS_RATES = {
    "pass_rate": "Share of the teacher's samples of this problem that are right.",
    "pass_rate_low": "Lower end of the pass rate's 95% interval (Wilson).",
    "pass_rate_high": "Upper end of the pass rate's 95% interval (Wilson).",
    "pass_samples": "Samples of this problem that the pass rate is of.",
}


def refused_programs(stage: StageSpec[Any], pipeline: Pipeline, named: str | None = None) -> Mistake | None:
    """Return why a run must not begin: it will run programs of models, and the sandbox does not hold here.

    Args:
        stage: the verify stage.
        pipeline: its pipeline.
        named: the verifier that the stage names.
    """
    sources = [
        SOURCES.get(above.name)().verifiers(above.params)
        for above in pipeline.above(stage)
        if above.verb == "source" and above.name in SOURCES
    ]
    # A source of rows that may name any verifier does not tell; its programs are refused when they come.
    if not (runs_code(named) if named else any(names and all(map(runs_code, names)) for names in sources)):
        return None
    try:
        require(pipeline.sandbox.allow)
    except UserError as error:
        found = error.mistakes[0]
        return Mistake(f"stage {stage.id!r}: {found.message}", stage.file, stage.line, found.hint)
    return None


async def verdicts_by_rule(
    traces: Sequence[Trace], services: Services, policy: str = "{}", verifier: str | None = None
) -> list[Verdict]:
    """Return the verdict of each trace, by the verifier that is named or that its problem names."""
    return await verify([task_of(trace, policy, verifier) for trace in traces], services)


def task_of(trace: Trace, policy: str = "{}", verifier: str | None = None) -> VerifyTask:
    """Return what a verifier looks at in a trace.

    Args:
        trace: the trace.
        policy: the parameters of the stage, as JSON.
        verifier: the verifier to use instead of the one that the problem names. The parameters in the problem are left
            out, because they are those of the verifier that it names.
    """
    problem = trace.problem
    if verifier is not None and verifier != problem.verifier:
        problem = problem.model_copy(update={"verifier": verifier, "spec": "{}"})
    return VerifyTask(
        problem=problem,
        answer_text=trace.answer_text,
        reasoning=trace.reasoning,
        thinking=trace.thinking,
        finish_reason=trace.finish_reason,
        policy=policy,
    )


def judgements(
    traces: Sequence[Trace], verdicts: Sequence[Verdict], added: Mapping[str, Mapping[str, Any]] | None = None
) -> list[Judgement]:
    """Return the judgement of each trace: its verdict, its problem's pass rates, and what else was `added` by id.

    The rates are of the trace's own teacher, and under `<teacher>/...` of every teacher that the problem was given to.
    All samples of a problem are in one batch, so they are final here.
    """
    outcomes: dict[str, dict[str, list[Outcome]]] = {}
    for trace, verdict in zip(traces, verdicts, strict=True):
        outcomes.setdefault(trace.problem_id, {}).setdefault(trace.teacher, []).append(verdict.outcome)
    rates = {problem: _rates(by_teacher) for problem, by_teacher in outcomes.items()}
    return [
        Judgement(
            trace.id,
            KEEP,
            {
                VERDICT.name: verdict,
                **rates[trace.problem_id],
                **{name: rates[trace.problem_id][f"{trace.teacher}/{name}"] for name in PASS_RATES},
                **(added or {}).get(trace.id, {}),
            },
        )
        for trace, verdict in zip(traces, verdicts, strict=True)
    ]


def outcome_counts(verdicts: Sequence[Verdict]) -> dict[str, float]:
    """Count verdicts by outcome."""
    found = [verdict.outcome for verdict in verdicts]
    return {outcome.value: float(found.count(outcome)) for outcome in Outcome if outcome in found}


def verdict_columns(stage: StageSpec[Any], pipeline: Pipeline) -> list[Column]:
    """Return the columns of a verify stage: the verdict, and pass rates of every teacher that a stage above asks.

    Imported traces name teachers that are only known once they are read: `*`.
    """
    above = pipeline.above(stage)
    teachers = {name for one in above for name in stage_of(one).teachers(one, pipeline)}
    return [VERDICT] + [
        Column(
            name=f"{teacher}{name}",
            type=Type.NUMBER,
            description=about,
            unit="samples" if name == "pass_samples" else "share",
            direction="" if name == "pass_samples" else "higher",
            about="problem",
        )
        for teacher in ("", *(f"{teacher}/" for teacher in sorted(teachers)))
        for name, about in PASS_RATES.items()
    ]


def verifier_versions(stage: StageSpec[Any], pipeline: Pipeline, named: str | None = None) -> dict[str, str]:
    """Return the versions of the verifiers that may be used: the one named, or those that the sources above name."""
    if named is not None:
        return {named: VERIFIERS.get(named).version}
    names: set[str] = set()
    for above in pipeline.above(stage):
        if above.verb == "source":  # a project's own way to read says nothing of verifiers: its problems may name any
            known = above.name in SOURCES
            names |= SOURCES.get(above.name)().verifiers(above.params) if known else VERIFIERS.names()
    return {name: VERIFIERS.get(name).version for name in sorted(names)}


def _rates(by_teacher: Mapping[str, list[Outcome]]) -> dict[str, float]:
    values: dict[str, float] = {}
    for teacher, outcomes in sorted(by_teacher.items()):
        rate = pass_rate(outcomes)
        numbers = (rate.rate, rate.low, rate.high, float(rate.samples))
        values |= {f"{teacher}/{name}": number for name, number in zip(PASS_RATES, numbers, strict=True)}
    return values
