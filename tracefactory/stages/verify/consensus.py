"""`verify: consensus`: the majority answer of a problem's samples stands for the gold answer it does not have."""

from __future__ import annotations

import asyncio
from typing import Any

from pydantic import Field

from tracefactory.answers.extract import Extraction
from tracefactory.config import Pipeline, StageConfig
from tracefactory.core.op import OPS, Inputs, Rows, ShardOp, ShardResult
from tracefactory.core.schema import Frozen, Outcome, Problem, Trace
from tracefactory.engine.worker import Worker
from tracefactory.stages.verify.auto import pass_rates_of, task_of, verdicts_by_rule, verifier_versions, with_pass_rates
from tracefactory.verification.base import VerifyTask, stated_answer
from tracefactory.verification.consensus import Consensus, consensus


class ConsensusParams(Frozen):
    """A majority counts from `min_samples` samples and a margin over the second answer of at least `min_margin`."""

    min_samples: int = Field(default=3, ge=1)
    min_margin: float = Field(default=0.25, ge=0, le=1)


class VerifyConsensus(ShardOp):
    """Vote where there is no gold; problems that have one are verified by rule. Answers vote by equivalence class."""

    verb, name, version = "verify", "consensus", "1"
    Params = ConsensusParams
    takes, gives = Rows.TRACES, Rows.TRACES
    many_inputs = True

    def identity(self, stage: StageConfig, pipeline: Pipeline) -> dict[str, Any]:
        return {"verifiers": verifier_versions()}

    def measures(self, stage: StageConfig, pipeline: Pipeline) -> frozenset[str]:
        return pass_rates_of(stage, pipeline) | {"consensus/share", "consensus/margin"}

    async def run(self, stage: StageConfig, inputs: Inputs, worker: Worker) -> ShardResult:
        assert isinstance(stage.params, ConsensusParams)
        traces = inputs.traces()
        checked = [
            trace.model_copy(update={"verdict": verdict})
            for trace, verdict in zip(traces, await verdicts_by_rule(traces, worker), strict=True)
        ]
        kept = [trace for trace in checked if trace.problem.answer is not None]
        by_problem: dict[str, list[Trace]] = {}
        for trace in checked:
            if trace.problem.answer is None:
                by_problem.setdefault(trace.problem.id, []).append(trace)
        for samples in by_problem.values():
            # Comparing may wait for a verifier process, which must not hold up the event loop.
            kept += await asyncio.to_thread(_voted, samples, stage.params, worker)
        return ShardResult(rows_in=len(traces), kept=with_pass_rates(kept))


def _voted(samples: list[Trace], params: ConsensusParams, worker: Worker) -> list[Trace]:
    problem = samples[0].problem

    def same(one: str, two: str) -> bool:
        asked = Problem.make(question=problem.question, answer=one, verifier=problem.verifier, spec=problem.spec)
        verdict = worker.verifiers.verify_now(VerifyTask(problem=asked, answer_text=two, policy='{"bare": true}'))
        return verdict.outcome is Outcome.CORRECT

    # Without a gold answer no verifier looks for the sample's own.
    stated = [stated_answer(task_of(trace), bare=False) for trace in samples]
    found = consensus([None if one is None else one.text for one in stated], same)
    enough = found.samples >= params.min_samples and found.margin >= params.min_margin
    return [
        _with_vote(trace, answer, found, place if enough else None)
        for trace, answer, place in zip(samples, stated, found.classes, strict=True)
    ]


def _with_vote(trace: Trace, answer: Extraction | None, found: Consensus, place: int | None) -> Trace:
    """Give a trace the verdict of the vote; without a majority, or without an answer, it stays unverifiable."""
    rules = trace.verdict
    assert rules is not None
    measures = {**trace.measures, "consensus/share": found.share, "consensus/margin": found.margin}
    outcome = Outcome.UNVERIFIABLE
    if found.answer is not None and place is not None:
        winner = next(one for one, count in _sizes(found).items() if count == found.votes)
        outcome = Outcome.CORRECT if place == winner else Outcome.INCORRECT
    detail = f"pseudo-gold {found.answer!r}: {found.votes} of {found.samples} samples, margin {found.margin:.2f}"
    verdict = rules.model_copy(
        update={
            "outcome": outcome,
            "extracted": None if answer is None else answer.text,
            "span_start": None if answer is None else answer.start,
            "span_end": None if answer is None else answer.end,
            "method": "consensus",
            "verifier": f"consensus/{rules.verifier}",
            "version": f"{VerifyConsensus.version}+{rules.version}",
            "detail": detail,
        }
    )
    return trace.model_copy(update={"verdict": verdict, "measures": measures})


def _sizes(found: Consensus) -> dict[int, int]:
    sizes: dict[int, int] = {}
    for place in found.classes:
        if place is not None:
            sizes[place] = sizes.get(place, 0) + 1
    return sizes


OPS.register("verify:consensus")(VerifyConsensus())
