"""`verify: judge`: a model decides whether two answers are the same, where the rules could not."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import Field

from tracefactory.config import Pipeline, StageConfig
from tracefactory.core.errors import Mistake
from tracefactory.core.fingerprint import digest
from tracefactory.core.op import OPS, AtMost, Host, Inputs, ModelName, PromptName, Rows, ShardOp, ShardResult
from tracefactory.core.schema import Frozen, Outcome, Row, Trace, Verdict
from tracefactory.engine.worker import Record, Worker
from tracefactory.serving.base import ChatRequest, Completion, RequestFailed, Where
from tracefactory.stages.sample.chat import spent
from tracefactory.stages.verify.auto import pass_rates_of, verdicts_by_rule, with_pass_rates
from tracefactory.text.reasoning import split_reasoning
from tracefactory.verification.judge import Judgement, judge

LONGEST_ANSWER = 2000  # characters of an answer text from which the rules could extract nothing


class JudgeParams(Frozen):
    """`ask` about what the rules left undecided, or about every answer; the majority of `votes` counts."""

    model: ModelName
    prompt: PromptName = "judge_equivalence"
    votes: int = Field(default=3, ge=1)
    ask: Literal["unverifiable", "all"] = "unverifiable"
    temperature: float = Field(default=0.7, ge=0)
    max_tokens: int = Field(default=512, ge=1)
    seed: int = Field(default=0, ge=0)


class VerifyJudge(ShardOp):
    """Ask a model about equivalence; what the rules said stays in the verdict's detail, agreement is a measure."""

    verb, name, version = "verify", "judge", "1"
    Params = JudgeParams
    takes, gives = Rows.TRACES, Rows.TRACES
    many_inputs = True
    host = Host.MODEL

    def identity(self, stage: StageConfig, pipeline: Pipeline) -> dict[str, Any]:
        params = _params(stage)
        return {
            "model": pipeline.models[params.model].identity(Where(root=pipeline.project.root)),
            "prompt": pipeline.prompts[params.prompt].digest,
        }

    def check(self, stage: StageConfig, pipeline: Pipeline) -> list[Mistake]:
        votes = _params(stage).votes
        return [] if votes % 2 else [Mistake(f"votes: {votes} can tie; an odd number is needed")]

    def at_most(self, stage: StageConfig, pipeline: Pipeline, rows: Sequence[Row]) -> Mapping[str, AtMost]:
        """Return every vote on every answer that the rules may leave undecided; a prompt is bounded by its bytes."""
        params, found = _params(stage), AtMost()
        for row in rows:
            decided = isinstance(row, Trace) and row.verdict and row.verdict.outcome is not Outcome.UNVERIFIABLE
            if isinstance(row, Trace) and (params.ask == "all" or not decided):
                messages = pipeline.prompts[params.prompt].render(**_values(row, row.answer_text))
                size = sum(len(message["content"].encode()) for message in messages)
                found += AtMost(params.votes, params.votes * size, params.votes * params.max_tokens)
        return {params.model: found}

    def measures(self, stage: StageConfig, pipeline: Pipeline) -> frozenset[str]:
        return pass_rates_of(stage, pipeline) | {"judge/votes", "judge/agrees"}

    async def run(self, stage: StageConfig, inputs: Inputs, worker: Worker) -> ShardResult:
        traces = inputs.traces()
        unchecked = [trace for trace in traces if trace.verdict is None]
        by_rule = dict(zip([one.id for one in unchecked], await verdicts_by_rule(unchecked, worker), strict=True))
        ruled = [(trace, trace.verdict or by_rule[trace.id]) for trace in traces]
        # Failures are gathered, not raised: one failed vote must not cost its siblings.
        votes: list[Record] = []
        outcomes = await asyncio.gather(*(_judged(*one, stage, worker, votes) for one in ruled), return_exceptions=True)
        kept, retryable = [], 0
        for (trace, rules), outcome in zip(ruled, outcomes, strict=True):
            if isinstance(outcome, RequestFailed):
                retryable += outcome.retryable
                kept.append(trace.model_copy(update={"verdict": _failed(rules, outcome, stage)}))
            elif isinstance(outcome, BaseException):
                raise outcome
            else:
                kept.append(outcome)
        mine = [vote for vote in votes if vote["run"] == worker.setup.run_id]
        numbers = spent(votes) | {f"paid_{name}": number for name, number in spent(mine).items()}
        return ShardResult(rows_in=len(traces), kept=with_pass_rates(kept), retryable=retryable, numbers=numbers)


async def _judged(trace: Trace, rules: Verdict, stage: StageConfig, worker: Worker, votes: list[Record]) -> Trace:
    params, answer = _params(stage), rules.extracted or trace.answer_text.strip()[-LONGEST_ANSWER:]
    nothing_to_ask = trace.problem.answer is None or not answer or rules.outcome is Outcome.VERIFIER_ERROR
    if nothing_to_ask or (params.ask == "unverifiable" and rules.outcome is not Outcome.UNVERIFIABLE):
        return trace.model_copy(update={"verdict": rules})

    async def ask(vote: int) -> str:
        request = _request(trace, answer, vote, stage, worker)
        (outcome,) = await worker.complete(params.model, [request], stage.id)
        if isinstance(outcome, RequestFailed):
            raise outcome
        votes.append(outcome)
        completion = Completion.model_validate(outcome["completion"])
        return split_reasoning(completion.content, completion.reasoning, opened_in_prompt=False)[1]

    found = await judge(ask, rules, params.votes)
    measures = {**trace.measures, "judge/votes": float(found.same + found.different + found.unclear)}
    if found.agrees is not None:
        measures["judge/agrees"] = float(found.agrees)
    return trace.model_copy(update={"verdict": _verdict(rules, found, params), "measures": measures})


def _request(trace: Trace, answer: str, vote: int, stage: StageConfig, worker: Worker) -> ChatRequest:
    params = _params(stage)
    prompt = worker.pipeline.prompts[params.prompt]
    # The vote is of this answer, whoever wrote it: equal answers to one question share their votes.
    seed = int(digest({"seed": params.seed, "problem": trace.problem.id, "answer": answer, "vote": vote})[:8], 16) >> 1
    return ChatRequest(
        model_identity=worker.pipeline.models[params.model].identity(worker.where),
        messages=tuple(prompt.render(**_values(trace, answer))),
        params={"temperature": params.temperature, "max_tokens": params.max_tokens, "seed": seed},
        sample_index=vote,
    )


def _values(trace: Trace, answer: str) -> dict[str, str | None]:
    return {"question": trace.problem.question, "gold": trace.problem.answer, "answer": answer}


def _verdict(rules: Verdict, found: Judgement, params: JudgeParams) -> Verdict:
    votes = f"{found.same} same, {found.different} different, {found.unclear} unclear"
    return rules.model_copy(
        update={
            "outcome": found.outcome,
            "method": "judge",
            "verifier": f"judge/{params.model}",
            "version": VerifyJudge.version,
            "detail": f"{votes}; the rules said {rules.outcome} by {rules.method} ({rules.verifier} {rules.version})",
        }
    )


def _failed(rules: Verdict, failure: RequestFailed, stage: StageConfig) -> Verdict:
    changed = {"outcome": Outcome.VERIFIER_ERROR, "method": "judge", "verifier": f"judge/{_params(stage).model}"}
    return rules.model_copy(update={**changed, "version": VerifyJudge.version, "detail": str(failure)})


def _params(stage: StageConfig) -> JudgeParams:
    assert isinstance(stage.params, JudgeParams)
    return stage.params


OPS.register("verify:judge")(VerifyJudge())
