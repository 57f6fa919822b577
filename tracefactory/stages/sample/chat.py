"""Sampling from teachers, each completion stored the moment it is paid for; `sample: chat`."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from pydantic import Field

from tracefactory.config import Pipeline, StageConfig
from tracefactory.core.fingerprint import digest
from tracefactory.core.op import OPS, Host, Inputs, ModelName, PromptName, Rows, ShardOp, ShardResult
from tracefactory.core.schema import Dropped, Frozen, Problem, Trace
from tracefactory.engine.worker import Completer, Record, Worker
from tracefactory.serving.base import ChatRequest, Completion, RequestFailed, Where
from tracefactory.store.stages import dropped_row
from tracefactory.text.reasoning import split_reasoning


class SampleParams(Frozen):
    """How much to sample. `seed` is the start of every sample's own seed; `max_tokens` counts reasoning and answer."""

    prompt: PromptName
    samples: int = Field(default=4, ge=1)
    max_tokens: int = Field(default=4096, ge=1)
    seed: int = Field(default=0, ge=0)


class ChatParams(SampleParams):
    """How to sample chats from one model.

    `logprobs` has the server report the log-probability of every sampled token, and stores it with the completion, for
    measures of teacher against student. Which distribution they are of is the server's word: llama.cpp and vLLM report
    the model's own, before temperature and top-p, unless told otherwise. It is part of a request, so completions that
    were paid for without are not found again with it.
    """

    model: ModelName
    temperature: float = Field(default=0.7, ge=0)
    top_p: float = Field(default=0.95, gt=0, le=1)
    stop: tuple[str, ...] = ()
    logprobs: bool = False


@dataclass(frozen=True)
class Draw:
    """One sample to take: the request and the trace it will become."""

    request: ChatRequest
    problem: Problem
    index: int
    seed: int

    def trace_id(self, stage: StageConfig) -> str:
        return digest({"stage": stage.id, "problem": self.problem.id, "request": self.request.key})[:16]


@dataclass
class Sampled:
    """What came of the samples of one shard: a trace or an error row for each, and what they took."""

    traces: list[Trace] = field(default_factory=list)
    failed: list[Dropped] = field(default_factory=list)
    retryable: int = 0
    numbers: dict[str, float] = field(default_factory=dict)


class SampleOp(ShardOp):
    """Sample `samples` completions per problem. A failed sample is an error row and does not cost its siblings."""

    verb = "sample"
    takes, gives = Rows.PROBLEMS, Rows.TRACES
    many_inputs = True
    host = Host.MODEL
    completion: ClassVar[type[Completion]] = Completion

    @abstractmethod
    def payer(self, stage: StageConfig) -> str:
        """Return the name of the model whose prices and slots count."""

    @abstractmethod
    def model_identity(self, stage: StageConfig, pipeline: Pipeline, where: Where) -> dict[str, Any]:
        """Return what decides a completion besides messages and sampling parameters: part of the request's key."""

    @abstractmethod
    def sampling(self, stage: StageConfig, seed: int) -> dict[str, Any]:
        """Return the sampling parameters of a request."""

    @abstractmethod
    def temperature(self, stage: StageConfig) -> float:
        """Return the temperature to record with a trace."""

    def fields(self, stage: StageConfig, completion: Completion) -> dict[str, Any]:
        """Return the fields of a trace that are particular to this way of sampling."""
        return {}

    def client(self, stage: StageConfig, worker: Worker) -> Completer:
        """Return what completes the requests."""
        return worker.client(self.payer(stage))

    def rows_expected(self, stage: StageConfig, rows: int) -> int | None:
        return rows * _params(stage).samples

    def draws(
        self, stage: StageConfig, pipeline: Pipeline, problems: list[Problem], where: Where | None = None
    ) -> list[Draw]:
        """Return every sample this stage takes of `problems`: what `plan` counts and `run` pays for."""
        params, prompt = _params(stage), pipeline.prompts[_params(stage).prompt]
        identity = self.model_identity(stage, pipeline, where or Where(root=pipeline.project.root))
        drawn = []
        for problem in problems:
            messages = tuple(prompt.render(question=problem.question))
            for index in range(params.samples):
                seed = int(digest({"seed": params.seed, "problem": problem.id, "sample": index})[:8], 16) >> 1
                sampling = self.sampling(stage, seed)
                request = ChatRequest(model_identity=identity, messages=messages, params=sampling, sample_index=index)
                drawn.append(Draw(request, problem, index, seed))
        return drawn

    async def sample(self, stage: StageConfig, inputs: Inputs, worker: Worker) -> Sampled:
        """Take the samples of one shard."""
        draws = self.draws(stage, worker.pipeline, inputs.problems(), worker.where)
        requests = [draw.request for draw in draws]
        outcomes = await worker.complete(self.payer(stage), requests, stage.id, self.client(stage, worker))
        records = [outcome for outcome in outcomes if not isinstance(outcome, RequestFailed)]
        mine = [record for record in records if record["run"] == worker.setup.run_id]
        numbers = spent(records) | {f"paid_{name}": number for name, number in spent(mine).items()}
        sampled = Sampled(numbers=numbers)
        for draw, outcome in zip(draws, outcomes, strict=True):
            if isinstance(outcome, RequestFailed):
                trace = self._trace(draw, stage, worker, {"finish_reason": "error", "error": str(outcome)})
                sampled.failed.append(dropped_row(trace, stage.id, outcome.kind, str(outcome), error=True))
                sampled.retryable += outcome.retryable
            else:
                sampled.traces.append(self._trace(draw, stage, worker, self._what_came(stage, worker, outcome)))
        return sampled

    async def run(self, stage: StageConfig, inputs: Inputs, worker: Worker) -> ShardResult:
        sampled = await self.sample(stage, inputs, worker)
        return ShardResult(
            rows_in=len(inputs.problems()) * _params(stage).samples,
            kept=sampled.traces,
            dropped=sampled.failed,
            retryable=sampled.retryable,
            numbers=sampled.numbers,
        )

    def _what_came(self, stage: StageConfig, worker: Worker, record: Record) -> dict[str, Any]:
        """Return the fields of a trace that its completion decides."""
        completion = self.completion.model_validate(record["completion"])
        prompt = worker.pipeline.prompts[_params(stage).prompt]
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
            **self.fields(stage, completion),
        }

    def _trace(self, draw: Draw, stage: StageConfig, worker: Worker, came: dict[str, Any]) -> Trace:
        """Describe one sample by everything that decided it, and by what came back."""
        name, params = self.payer(stage), _params(stage)
        prompt, spec = worker.pipeline.prompts[params.prompt], worker.pipeline.models[name]
        return Trace(
            id=draw.trace_id(stage),
            problem=draw.problem,
            stage=stage.id,
            teacher=name,
            model=spec.model,
            revision=spec.recorded_revision(worker.where),
            prompt=params.prompt,
            prompt_digest=prompt.digest,
            style=prompt.style,
            sample_index=draw.index,
            seed=draw.seed,
            temperature=self.temperature(stage),
            request_key=draw.request.key,
            **came,
        )


class SampleChat(SampleOp):
    """Sample chats from one teacher."""

    name, version = "chat", "1"
    Params = ChatParams

    def payer(self, stage: StageConfig) -> str:
        return _chat(stage).model

    def identity(self, stage: StageConfig, pipeline: Pipeline) -> dict[str, Any]:
        return {
            "model": self.model_identity(stage, pipeline, Where(root=pipeline.project.root)),
            "prompt": pipeline.prompts[_chat(stage).prompt].digest,
        }

    def model_identity(self, stage: StageConfig, pipeline: Pipeline, where: Where) -> dict[str, Any]:
        return pipeline.models[_chat(stage).model].identity(where)

    def sampling(self, stage: StageConfig, seed: int) -> dict[str, Any]:
        params = _chat(stage)
        sampling: dict[str, Any] = {
            "temperature": params.temperature,
            "top_p": params.top_p,
            "max_tokens": params.max_tokens,
            "seed": seed,
        }
        sampling |= {"stop": list(params.stop)} if params.stop else {}
        # One alternative besides, which is not kept: llama.cpp takes none asked for as nothing asked for.
        return sampling | ({"logprobs": True, "top_logprobs": 1} if params.logprobs else {})

    def temperature(self, stage: StageConfig) -> float:
        return _chat(stage).temperature


def spent(records: Sequence[Record]) -> dict[str, float]:
    """Add up what completions took, whoever paid for them."""
    return {
        "requests": len(records),
        "prompt_tokens": sum(record["completion"]["prompt_tokens"] for record in records),
        "completion_tokens": sum(record["completion"]["completion_tokens"] for record in records),
        "cost": sum(record["cost"] for record in records),
    }


def _params(stage: StageConfig) -> SampleParams:
    assert isinstance(stage.params, SampleParams)
    return stage.params


def _chat(stage: StageConfig) -> ChatParams:
    assert isinstance(stage.params, ChatParams)
    return stage.params


OPS.register("sample:chat")(SampleChat())
