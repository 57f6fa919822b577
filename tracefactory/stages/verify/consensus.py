"""`verify: consensus`: the majority answer of a problem's samples takes the place of a gold answer it does not have."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pydantic import Field

from tracefactory.answers.extraction import Extraction
from tracefactory.core.columns import Column
from tracefactory.core.pipeline import Pipeline, StageSpec
from tracefactory.core.rows import Frozen, Outcome, Trace, Verdict
from tracefactory.core.stage import STAGES, Batch, Result, RowReader, Services, Stage
from tracefactory.core.upgrade import Upgrade
from tracefactory.stages._upgrade import upgrade_of_verdicts
from tracefactory.stages._verdicts import judgements, task_of, verdict_columns, verdicts_by_rule, verifier_versions
from tracefactory.verification.base import VERIFIERS, ExtractParams, VerifyTask
from tracefactory.verification.consensus import Consensus, consensus
from tracefactory.verification.pool import quick_verdict

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

    def upgrade(
        self, stage: StageSpec[ConsensusParams], pipeline: Pipeline, before: Mapping[str, Any], rows: RowReader | None
    ) -> Upgrade:
        def again(samples: Sequence[Trace]) -> Sequence[Verdict | None]:
            return _quick_verdicts(samples, stage.params)

        return upgrade_of_verdicts(before, verifier_versions(stage, pipeline), rows, again)

    async def run(self, stage: StageSpec[ConsensusParams], batch: Batch, services: Services) -> Result:
        verdicts = dict(
            zip([one.id for one in batch.traces], await verdicts_by_rule(batch.traces, services), strict=True)
        )
        added: dict[str, dict[str, float]] = {}
        for samples in batch.groups():
            if samples[0].problem.answer is None:
                # Comparing may wait for a verifier process, which must not hold up the event loop.
                found = await asyncio.to_thread(_vote, samples, services.verifiers.verify_now)
                for trace, voted in zip(samples, _verdicts(samples, found, verdicts, stage.params), strict=True):
                    verdicts[trace.id] = voted
                    added[trace.id] = {SHARE.name: found[1].share, MARGIN.name: found[1].margin}
        return Result(judged=judgements(batch.traces, [verdicts[one.id] for one in batch.traces], added))


Vote = tuple[list[Extraction | None], Consensus]


class _NeedsProcessError(Exception):
    """Two answers cannot be compared without a process."""


def _quick_verdicts(samples: Sequence[Trace], params: ConsensusParams) -> Sequence[Verdict | None]:
    """Return the verdicts of all samples of a problem without a process, None for those that need one."""
    by_rule = {trace.id: quick_verdict(task_of(trace)) for trace in samples}
    known = {row_id: verdict for row_id, verdict in by_rule.items() if verdict is not None}
    if samples[0].problem.answer is not None:
        return [by_rule[trace.id] for trace in samples]
    try:
        vote = _vote(samples, quick_verdict)
    except _NeedsProcessError:
        return [None] * len(samples)
    return _verdicts(samples, vote, known, params) if len(known) == len(samples) else [None] * len(samples)


def _vote(samples: Sequence[Trace], verify: Callable[[VerifyTask], Verdict | None]) -> Vote:
    """Return the answers of all samples of a problem, and their vote.

    Raises:
        _NeedsProcessError: when `verify` gives no verdict on a pair of answers.
    """
    problem = samples[0].problem

    def same(one: str, two: str) -> bool:
        asked = problem.model_copy(update={"answer": one})
        verdict = verify(VerifyTask(problem=asked, answer_text=two, policy='{"bare": true}'))
        if verdict is None:
            raise _NeedsProcessError
        return verdict.outcome is Outcome.CORRECT

    # Without a gold answer no verifier looks for the sample's own.
    verifier = VERIFIERS.get(problem.verifier or "auto")
    stated = [verifier.stated(task_of(trace), ExtractParams()) for trace in samples]
    return stated, consensus([None if one is None else one.value for one in stated], same)


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
                    "confidence": None if answer is None else answer.confidence,
                    "method": "consensus",
                    "verifier": f"consensus/{rules.verifier}",
                    "version": f"{VerifyConsensus.version}+{rules.version}",
                    "detail": detail,
                }
            )
        )
    return verdicts


STAGES.register("verify:consensus")(VerifyConsensus())
