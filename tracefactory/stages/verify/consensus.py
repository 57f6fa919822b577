"""`verify: consensus`: the majority answer of a problem's samples takes the place of a gold answer it does not have."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import Field

from tracefactory.answers.extract import Extraction
from tracefactory.core.columns import Column
from tracefactory.core.pipeline import Pipeline, StageSpec
from tracefactory.core.rows import Frozen, Outcome, Trace, Verdict
from tracefactory.core.stage import STAGES, Batch, Result, Services, Stage
from tracefactory.stages._verdicts import judgements, task_of, verdict_columns, verdicts_by_rule, verifier_versions
from tracefactory.verification.base import VerifyTask, stated_answer
from tracefactory.verification.consensus import Consensus, consensus

SHARE = Column(
    name="consensus/share",
    description="Share of the samples that state the majority answer.",
    unit="share",
    about="problem",
)
MARGIN = Column(
    name="consensus/margin",
    description="Lead of the majority answer over the second, as a share.",
    unit="share",
    about="problem",
)


class ConsensusParams(Frozen):
    """When a majority counts."""

    min_samples: int = Field(default=3, ge=1, description="Samples of a problem that a majority needs.")
    min_margin: float = Field(
        default=0.25, ge=0, le=1, description="Lead over the second answer that a majority needs, as a share."
    )


class VerifyConsensus(Stage[ConsensusParams]):
    """Vote where there is no gold; problems that have one are verified by rule. Answers vote by equivalence class."""

    verb, name, version = "verify", "consensus", "1"
    Params = ConsensusParams

    def uses(self, stage: StageSpec[ConsensusParams], pipeline: Pipeline) -> Mapping[str, Any]:
        return {"versions": verifier_versions(stage, pipeline)}

    def columns(self, stage: StageSpec[ConsensusParams], pipeline: Pipeline) -> Sequence[Column]:
        return [*verdict_columns(stage, pipeline), SHARE, MARGIN]

    async def run(self, stage: StageSpec[ConsensusParams], batch: Batch, services: Services) -> Result:
        verdicts = dict(
            zip([one.id for one in batch.traces], await verdicts_by_rule(batch.traces, services), strict=True)
        )
        added: dict[str, dict[str, float]] = {}
        for samples in batch.groups():
            if samples[0].problem.answer is None:
                # Comparing may wait for a verifier process, which must not hold up the event loop.
                found = await asyncio.to_thread(_vote, samples, services)
                for trace, voted in zip(samples, _verdicts(samples, found, verdicts, stage.params), strict=True):
                    verdicts[trace.id] = voted
                    added[trace.id] = {SHARE.name: found[1].share, MARGIN.name: found[1].margin}
        return Result(judged=judgements(batch.traces, [verdicts[one.id] for one in batch.traces], added))


Vote = tuple[list[Extraction | None], Consensus]


def _vote(samples: Sequence[Trace], services: Services) -> Vote:
    problem = samples[0].problem

    def same(one: str, two: str) -> bool:
        asked = problem.model_copy(update={"answer": one})
        verdict = services.verifiers.verify_now(VerifyTask(problem=asked, answer_text=two, policy='{"bare": true}'))
        return bool(verdict.outcome is Outcome.CORRECT)

    # Without a gold answer no verifier looks for the sample's own.
    stated = [stated_answer(task_of(trace), bare=False) for trace in samples]
    return stated, consensus([None if one is None else one.text for one in stated], same)


def _verdicts(
    samples: Sequence[Trace], vote: Vote, by_rule: Mapping[str, Verdict], params: ConsensusParams
) -> list[Verdict]:
    """Return the verdicts of the vote; without a majority, or without an answer, a trace stays unverifiable."""
    stated, found = vote
    enough = found.samples >= params.min_samples and found.margin >= params.min_margin
    sizes: dict[int, int] = {}
    for place in found.classes:
        if place is not None:
            sizes[place] = sizes.get(place, 0) + 1
    winner = next((place for place, count in sizes.items() if count == found.votes), None)
    detail = f"pseudo-gold {found.answer!r}: {found.votes} of {found.samples} samples, margin {found.margin:.2f}"
    verdicts = []
    for trace, answer, place in zip(samples, stated, found.classes, strict=True):
        rules = by_rule[trace.id]
        outcome = Outcome.UNVERIFIABLE
        if enough and found.answer is not None and place is not None:
            outcome = Outcome.CORRECT if place == winner else Outcome.INCORRECT
        verdicts.append(
            rules.model_copy(
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
        )
    return verdicts


STAGES.register("verify:consensus")(VerifyConsensus())
