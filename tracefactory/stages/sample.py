"""`sample: chat`: several completions per problem from a teacher, each stored the moment it is paid for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import Field

from tracefactory.config import Pipeline, StageConfig
from tracefactory.fingerprint import digest
from tracefactory.models.base import ChatRequest, Completion, RequestFailed, Where
from tracefactory.models.reasoning import split_reasoning
from tracefactory.op import OPS, Host, Inputs, ModelName, PromptName, Rows, ShardOp, ShardResult
from tracefactory.prompts import Prompt
from tracefactory.schema import Frozen, Problem, Trace
from tracefactory.store import dropped_row
from tracefactory.worker import Record, Worker


class ChatParams(Frozen):
    """How to sample. `seed` is the start of every sample's own seed; `max_tokens` counts reasoning and answer."""

    model: ModelName
    prompt: PromptName
    samples: int = Field(default=4, ge=1)
    temperature: float = Field(default=0.7, ge=0)
    top_p: float = Field(default=0.95, gt=0, le=1)
    max_tokens: int = Field(default=4096, ge=1)
    stop: tuple[str, ...] = ()
    seed: int = Field(default=0, ge=0)


@dataclass(frozen=True)
class Draw:
    """One sample to take: the request and the trace it will become."""

    request: ChatRequest
    problem: Problem
    index: int
    seed: int

    def trace_id(self, stage: StageConfig) -> str:
        return digest({"stage": stage.id, "problem": self.problem.id, "request": self.request.key})[:16]


class SampleChat(ShardOp):
    """Sample `samples` chats per problem. A failed sample is an error row and does not cost its siblings."""

    verb, name, version = "sample", "chat", "1"
    Params = ChatParams
    takes, gives = Rows.PROBLEMS, Rows.TRACES
    many_inputs = True
    host = Host.MODEL

    def identity(self, stage: StageConfig, pipeline: Pipeline) -> dict[str, Any]:
        params = _params(stage)
        return {
            "model": pipeline.models[params.model].identity(Where(root=pipeline.project.root)),
            "prompt": pipeline.prompts[params.prompt].digest,
        }

    def rows_expected(self, stage: StageConfig, rows: int) -> int | None:
        return rows * _params(stage).samples

    def draws(
        self, stage: StageConfig, pipeline: Pipeline, problems: list[Problem], where: Where | None = None
    ) -> list[Draw]:
        """Return every sample this stage takes of `problems`: what `plan` counts and `run` pays for."""
        params, prompt = _params(stage), pipeline.prompts[_params(stage).prompt]
        model = pipeline.models[params.model].identity(where or Where(root=pipeline.project.root))
        return [_draw(params, prompt, model, problem, index) for problem in problems for index in range(params.samples)]

    async def run(self, stage: StageConfig, inputs: Inputs, worker: Worker) -> ShardResult:
        draws = self.draws(stage, worker.pipeline, inputs.problems(), worker.where)
        outcomes = await worker.complete(_params(stage).model, [draw.request for draw in draws], stage.id)
        kept, dropped, again = [], [], 0
        for draw, outcome in zip(draws, outcomes, strict=True):
            if isinstance(outcome, RequestFailed):
                trace = _trace(draw, stage, worker, {"finish_reason": "error", "error": str(outcome)})
                dropped.append(dropped_row(trace, stage.id, outcome.kind, str(outcome), error=True))
                again += outcome.retryable
            else:
                kept.append(_trace(draw, stage, worker, _what_came(stage, worker.pipeline, outcome)))
        records = [outcome for outcome in outcomes if not isinstance(outcome, RequestFailed)]
        mine = [record for record in records if record["run"] == worker.setup.run_id]
        numbers = spent(records) | {f"paid_{name}": number for name, number in spent(mine).items()}
        return ShardResult(
            rows_in=len(draws),
            kept=kept,
            dropped=dropped,
            retryable=again,
            numbers=numbers,
        )


def _params(stage: StageConfig) -> ChatParams:
    assert isinstance(stage.params, ChatParams)
    return stage.params


def _draw(params: ChatParams, prompt: Prompt, model: dict[str, Any], problem: Problem, index: int) -> Draw:
    seed = int(digest({"seed": params.seed, "problem": problem.id, "sample": index})[:8], 16) >> 1
    sampling: dict[str, Any] = {
        "temperature": params.temperature,
        "top_p": params.top_p,
        "max_tokens": params.max_tokens,
        "seed": seed,
    }
    if params.stop:
        sampling["stop"] = list(params.stop)
    messages = tuple(prompt.render(question=problem.question))
    return Draw(
        ChatRequest(model_identity=model, messages=messages, params=sampling, sample_index=index), problem, index, seed
    )


def spent(records: Sequence[Record]) -> dict[str, float]:
    """Add up what completions took, whoever paid for them."""
    return {
        "requests": len(records),
        "prompt_tokens": sum(record["completion"]["prompt_tokens"] for record in records),
        "completion_tokens": sum(record["completion"]["completion_tokens"] for record in records),
        "cost": sum(record["cost"] for record in records),
    }


def _what_came(stage: StageConfig, pipeline: Pipeline, record: Record) -> dict[str, Any]:
    """Return the fields of a trace that its completion decides."""
    completion = Completion.model_validate(record["completion"])
    prompt = pipeline.prompts[_params(stage).prompt]
    reasoning, answer, thinking = split_reasoning(
        completion.content, completion.reasoning, opened_in_prompt=prompt.opened_in_prompt
    )
    return {
        "reasoning": reasoning,
        "answer_text": answer,
        "thinking": thinking,
        "finish_reason": completion.finish_reason,
        "refusal": completion.refusal,
        "prompt_tokens": completion.prompt_tokens,
        "completion_tokens": completion.completion_tokens,
        "cost": record["cost"],
    }


def _trace(draw: Draw, stage: StageConfig, worker: Worker, came: dict[str, Any]) -> Trace:
    """Describe one sample by everything that decided it, and by what came back."""
    params = _params(stage)
    prompt, spec = worker.pipeline.prompts[params.prompt], worker.pipeline.models[params.model]
    return Trace(
        id=draw.trace_id(stage),
        problem=draw.problem,
        stage=stage.id,
        teacher=params.model,
        model=spec.model,
        revision=spec.recorded_revision(worker.where),
        prompt=params.prompt,
        prompt_digest=prompt.digest,
        style=prompt.style,
        sample_index=draw.index,
        seed=draw.seed,
        temperature=params.temperature,
        request_key=draw.request.key,
        **came,
    )


OPS.register("sample:chat")(SampleChat())
