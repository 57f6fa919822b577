"""`verify: judge`: a model decides whether two answers are the same, where the rules could not."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import Field

from tracefactory.core.columns import Column, Type
from tracefactory.core.decisions import Judgement, fail
from tracefactory.core.environment import Environment
from tracefactory.core.errors import Mistake
from tracefactory.core.fingerprint import digest
from tracefactory.core.model import ChatRequest, Completion, RequestFailed, prompt_bytes
from tracefactory.core.pipeline import Pipeline, StageSpec
from tracefactory.core.rows import Frozen, Outcome, Trace, Verdict
from tracefactory.core.stage import (
    STAGES,
    AtMost,
    Batch,
    Host,
    ModelName,
    PromptName,
    Record,
    Result,
    RowReader,
    Services,
    Stage,
)
from tracefactory.core.upgrade import Upgrade
from tracefactory.stages._sampling import spent
from tracefactory.stages._templates import prompt_mistakes
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
from tracefactory.text.reasoning import split_reasoning
from tracefactory.verification.base import VERIFIERS
from tracefactory.verification.judge import judge
from tracefactory.verification.pool import quick_verdict

LONGEST_ANSWER = 2000  # characters of an answer text from which the rules could extract nothing
VOTES = Column(name="judge/votes", type=Type.NUMBER, description="Times the judge was asked.", unit="votes")
AGREES = Column(name="judge/agrees", type=Type.NUMBER, description="1 where the judge agrees with the rules, else 0.")


class JudgeParams(Frozen):
    """Whom to ask, about what, and how often."""

    model: ModelName = Field(description="The judge, by its name under models:.")
    prompt: PromptName = Field(
        default="judge_equivalence", description="The prompt; its reply is [SAME] or [DIFFERENT]."
    )
    votes: int = Field(default=3, ge=1, description="Times the judge is asked at most; the majority counts.")
    ask: Literal["unverifiable", "all"] = Field(
        default="unverifiable", description="Ask about what the rules left undecided, or about every answer."
    )
    temperature: float = Field(default=0.7, ge=0, description="Sampling temperature of a vote.")
    max_tokens: int = Field(default=512, ge=1, description="Tokens of one vote.")
    seed: int = Field(default=0, ge=0, description="Start of the seeds of the votes.")


class VerifyJudge(Stage[JudgeParams]):
    """Ask a model about equivalence; what the rules found stays in the verdict's detail, agreement is a measure."""

    verb, name, version = "verify", "judge", "1"
    Params = JudgeParams
    host = Host.MODEL

    def uses(self, stage: StageSpec[JudgeParams], pipeline: Pipeline) -> Mapping[str, Any]:
        return {
            "model": pipeline.models[stage.params.model].identity(Environment(root=pipeline.project.root)),
            "prompt": pipeline.prompts[stage.params.prompt].digest,
            "versions": verifier_versions(stage, pipeline),  # the rules decide first, unless a stage above did
        }

    def asks(self, stage: StageSpec[JudgeParams], pipeline: Pipeline) -> str | None:
        return stage.params.model

    def refusal(self, stage: StageSpec[JudgeParams], pipeline: Pipeline) -> Mistake | None:
        return refused_programs(stage, pipeline)

    def check(self, stage: StageSpec[JudgeParams], pipeline: Pipeline) -> list[Mistake]:
        votes = stage.params.votes
        return [] if votes % 2 else [Mistake(f"votes: {votes} can tie; an odd number is needed")]

    def template_mistakes(self, stage: StageSpec[JudgeParams], pipeline: Pipeline) -> list[Mistake]:
        return list(prompt_mistakes(stage, pipeline, stage.params.prompt, stage.params.model))

    def at_most(self, stage: StageSpec[JudgeParams], pipeline: Pipeline, batch: Batch) -> Mapping[str, AtMost]:
        """Return every vote on every answer that the rules may leave undecided; a prompt is bounded by its bytes."""
        params, found = stage.params, AtMost()
        for trace in batch.traces:
            decided = trace.verdict and trace.verdict.outcome is not Outcome.UNVERIFIABLE
            if params.ask == "all" or not decided:
                messages = pipeline.prompts[params.prompt].render(**_values(trace, trace.answer_text))
                size = prompt_bytes(messages)
                found += AtMost(params.votes, params.votes * size, params.votes * params.max_tokens)
        return {params.model: found}

    def columns(self, stage: StageSpec[JudgeParams], pipeline: Pipeline) -> Sequence[Column]:
        return [*verdict_columns(stage, pipeline), VOTES, AGREES]

    def upgrade(
        self, stage: StageSpec[JudgeParams], pipeline: Pipeline, before: Mapping[str, Any], rows: RowReader | None
    ) -> Upgrade:
        def again(samples: Sequence[Trace]) -> list[Verdict | None]:
            """Return verdicts by the rules; a stored one that the judge gave is not compared."""
            by_rules = [one.verdict is not None and one.verdict.verifier in VERIFIERS for one in samples]
            found = [
                quick_verdict(task_of(one)) if ruled else None for one, ruled in zip(samples, by_rules, strict=True)
            ]
            return [one if one is None or one.outcome is not Outcome.UNVERIFIABLE else None for one in found]

        return upgrade_of_verdicts(before, verifier_versions(stage, pipeline), rows, again)

    async def run(self, stage: StageSpec[JudgeParams], batch: Batch, services: Services) -> Result:
        traces = batch.traces
        unchecked = [trace for trace in traces if trace.verdict is None]
        by_rule = dict(zip([one.id for one in unchecked], await verdicts_by_rule(unchecked, services), strict=True))
        ruled = [(trace, trace.verdict or by_rule[trace.id]) for trace in traces]
        # Failures are gathered, not raised: one failed vote must not cost its siblings.
        asked = _Asked(stage, services)
        outcomes = await asyncio.gather(*(asked.about(*one) for one in ruled), return_exceptions=True)
        verdicts: list[Verdict] = []
        added: dict[str, dict[str, float]] = {}
        failed: dict[str, RequestFailed] = {}
        for (trace, rules), outcome in zip(ruled, outcomes, strict=True):
            if isinstance(outcome, RequestFailed):
                failed |= {trace.id: outcome} if outcome.retryable else {}
                verdicts.append(_by_judge(rules, stage.params, Outcome.VERIFIER_ERROR, str(outcome)))
            elif isinstance(outcome, BaseException):
                raise outcome
            else:
                verdicts.append(outcome[0])
                added[trace.id] = outcome[1]
        judged = [  # a vote that another run may yet get is owed; the row waits for it
            Judgement(one.id, fail(failure.kind, str(failure), owed=True), one.values)
            if (failure := failed.get(one.id)) is not None
            else one
            for one in judgements(traces, verdicts, added)
        ]
        numbers = {**outcome_counts(verdicts), **spent(asked.records, services.run_id)}
        return Result(judged=judged, numbers=numbers)


class _Asked:
    """Asks the judge of one stage; `records` are the votes that were given."""

    def __init__(self, stage: StageSpec[JudgeParams], services: Services) -> None:
        self.stage, self.params, self.services = stage, stage.params, services
        self.records: list[Record] = []

    async def about(self, trace: Trace, rules: Verdict) -> tuple[Verdict, dict[str, float]]:
        """Return the verdict on a trace and the measures of the vote; without a vote, what the rules found.

        Raises:
            RequestFailed: when a vote could not be had.
        """
        answer = rules.extracted or trace.answer_text.strip()[-LONGEST_ANSWER:]
        nothing_to_ask = trace.problem.answer is None or not answer or rules.outcome is Outcome.VERIFIER_ERROR
        if nothing_to_ask or (self.params.ask == "unverifiable" and rules.outcome is not Outcome.UNVERIFIABLE):
            return rules, {}
        if (left := self.services.left_failure(self.stage.id, trace.id)) is not None:
            raise left

        async def ask(vote: int) -> str:
            (given,) = await self.services.complete(
                self.params.model, [self._request(trace, answer, vote)], self.stage.id
            )
            if isinstance(given, RequestFailed):
                raise given
            self.records.append(given)
            completion = Completion.model_validate(given["completion"])
            return split_reasoning(completion.content, completion.reasoning, opened_in_prompt=False)[1]

        found = await judge(ask, rules, self.params.votes)
        measures = {VOTES.name: float(found.same + found.different + found.unclear)}
        if found.agrees is not None:
            measures[AGREES.name] = float(found.agrees)
        votes = f"{found.same} same, {found.different} different, {found.unclear} unclear"
        by_rules = f"the rules said {rules.outcome} by {rules.method} ({rules.verifier} {rules.version})"
        return _by_judge(rules, self.params, found.outcome, f"{votes}; {by_rules}"), measures

    def _request(self, trace: Trace, answer: str, vote: int) -> ChatRequest:
        pipeline, params = self.services.pipeline, self.params
        # The vote is of this answer, whoever wrote it: equal answers to one question share their votes.
        seed, seed_v1 = (
            int(digest({"seed": params.seed, "problem": of, "answer": answer, "vote": vote})[:8], 16) >> 1
            for of in (trace.problem.id, trace.problem.id_v1)
        )
        return ChatRequest(
            model_identity=pipeline.models[params.model].identity(self.services.environment),
            messages=tuple(pipeline.prompts[params.prompt].render(**_values(trace, answer))),
            params={"temperature": params.temperature, "max_tokens": params.max_tokens, "seed": seed},
            sample_index=vote,
            near=trace.problem_id,
            seed_v1=seed_v1,
        )


def _values(trace: Trace, answer: str) -> dict[str, str | None]:
    return {"question": trace.problem.question, "gold": trace.problem.answer, "answer": answer}


def _by_judge(rules: Verdict, params: JudgeParams, outcome: Outcome, detail: str) -> Verdict:
    """Return the verdict of the judge in place of the one by rules."""
    return rules.model_copy(
        update={
            "outcome": outcome,
            "method": "judge",
            "verifier": f"judge/{params.model}",
            "version": VerifyJudge.version,
            "detail": detail,
        }
    )


STAGES.register("verify:judge")(VerifyJudge())
