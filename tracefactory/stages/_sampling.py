"""What every `sample:` operation does: N requests for each row, each completion stored the moment it is paid for."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal, TypeVar

from pydantic import Field

from tracefactory.core.decisions import KEEP, Made, fail
from tracefactory.core.environment import Environment
from tracefactory.core.errors import Mistake
from tracefactory.core.fingerprint import digest
from tracefactory.core.keys import messages_digest, model_digest, request_key, request_key_v1
from tracefactory.core.model import ChatRequest, Completion, RequestFailed, prompt_bytes
from tracefactory.core.pipeline import Pipeline, StageSpec
from tracefactory.core.prices import billed, cost_of
from tracefactory.core.rows import ID_DIGITS, Frozen, Kind, Parent, ParentRole, Row, Trace, Turn
from tracefactory.core.stage import (
    Answer,
    Batch,
    Completer,
    Host,
    PromptName,
    Record,
    Result,
    Services,
    Stage,
    Wanted,
)
from tracefactory.stages._measured import kind_taken
from tracefactory.stages._templates import prompt_mistakes
from tracefactory.text.reasoning import has_words, split_reasoning, with_prefill


class SampleParams(Frozen):
    """How much to sample."""

    prompt: PromptName = Field(description="The prompt, by its file name in prompts/.")
    samples: int = Field(default=4, ge=1, description="Completions for each row.")
    max_tokens: int = Field(default=4096, ge=1, description="Tokens of one completion, reasoning and answer together.")
    seed: int = Field(default=0, ge=0, description="Start of the seeds of the samples.")
    role: ParentRole = Field(
        default=ParentRole.REVISES, description="What the new traces are to the traces they are sampled from."
    )
    writes: Literal["trace", "turn"] = Field(
        default="trace",
        description="Of a stage on traces: `trace` asks anew, with the prompt alone; `turn` goes on with the "
        "conversation, the prompt being the user's next message and the reply its next answer.",
    )


S = TypeVar("S", bound=SampleParams)


@dataclass(frozen=True)
class Draw:
    """One sample to take of one row: what decides its request."""

    row: Row
    index: int
    messages: Sequence[Mapping[str, Any]]
    params: Mapping[str, Any]
    start: int

    @property
    def seed_v1(self) -> int:
        """The seed that version 1 of the keys gave this sample: it was drawn from the problem's former id."""
        of = self.row.id if isinstance(self.row, Trace) else self.row.id_v1
        return seed_of(self.start, self.row, of, self.index)

    def key_v1(self, identity: Mapping[str, Any]) -> str:
        """Return the key that version 1 gave the request to a model with this identity."""
        return request_key_v1(identity, self.messages, {**self.params, "seed": self.seed_v1}, self.index)

    def request(self, identity: Mapping[str, Any]) -> ChatRequest:
        return ChatRequest(
            model_identity=dict(identity),
            messages=tuple(dict(message) for message in self.messages),
            params=dict(self.params),
            sample_index=self.index,
            near=self.row.problem_id if isinstance(self.row, Trace) else self.row.id,
            seed_v1=self.seed_v1,
        )


class SampleStage(Stage[S]):
    """Sample `samples` completions per row. A failed sample is a failed row and does not cost its siblings."""

    verb = "sample"
    takes, makes, judges = frozenset({Kind.PROBLEMS, Kind.TRACES}), Kind.TRACES, False
    host = Host.MODEL
    completion: ClassVar[type[Completion]] = Completion
    identity_name: ClassVar[str] = "model"  # of `model_identity` in what the stage uses

    @abstractmethod
    def billed_model(self, stage: StageSpec[S]) -> str:
        """Return the name of the model whose prices and slots count."""

    @abstractmethod
    def model_identity(self, stage: StageSpec[S], pipeline: Pipeline, environment: Environment) -> dict[str, Any]:
        """Return what decides a completion apart from messages and sampling parameters: part of the request's key."""

    @abstractmethod
    def sampling(self, stage: StageSpec[S], seed: int) -> dict[str, Any]:
        """Return the sampling parameters of a request."""

    @abstractmethod
    def temperature(self, stage: StageSpec[S]) -> float:
        """Return the temperature to record with a trace."""

    def fields(self, stage: StageSpec[S], completion: Completion) -> dict[str, Any]:
        """Return the fields of a trace that are particular to this way of sampling."""
        return {}

    def opened_in_prompt(self, completion: Completion) -> bool:
        """Tell whether the completion starts inside of the thinking, whatever the prompt says."""
        return False

    def completer(self, stage: StageSpec[S], services: Services) -> Completer:
        """Return what completes the requests."""
        client: Completer = services.client(self.billed_model(stage))
        return client

    def uses(self, stage: StageSpec[S], pipeline: Pipeline) -> Mapping[str, Any]:
        return {
            self.identity_name: self.model_identity(stage, pipeline, Environment(root=pipeline.project.root)),
            "prompt": pipeline.prompts[stage.params.prompt].digest,
            **prefill_versions(pipeline, [stage.params.prompt]),
        }

    def asks(self, stage: StageSpec[S], pipeline: Pipeline) -> str | None:
        return self.billed_model(stage)

    def teachers(self, stage: StageSpec[S], pipeline: Pipeline) -> frozenset[str]:
        return frozenset({self.billed_model(stage)})

    def rows_made(self, stage: StageSpec[S], rows: int) -> int | None:
        return rows * stage.params.samples

    def check(self, stage: StageSpec[S], pipeline: Pipeline) -> list[Mistake]:
        kind = Kind.PROBLEMS if kind_taken(stage, pipeline) is Kind.PROBLEMS else Kind.TRACES
        mistakes = list(pipeline.prompts[stage.params.prompt].check(kind))
        if stage.params.writes == "turn" and kind is Kind.PROBLEMS:
            mistakes.append(Mistake("writes: a problem has no conversation to go on with", hint="leave it out"))
        return mistakes

    def template_mistakes(self, stage: StageSpec[S], pipeline: Pipeline) -> list[Mistake]:
        return list(prompt_mistakes(stage, pipeline, stage.params.prompt, self.billed_model(stage)))

    def draws(self, stage: StageSpec[S], pipeline: Pipeline, rows: Sequence[Row]) -> Iterator[Draw]:
        """Yield every sample this stage takes of some rows: what `plan` counts and `run` pays for."""
        params, prompt = stage.params, pipeline.prompts[stage.params.prompt]
        for row in rows:
            messages = prompt.messages_for(row)
            if params.writes == "turn" and isinstance(row, Trace):
                messages = continued(row, messages)
            for index in range(params.samples):
                sampling = self.sampling(stage, seed_of(params.seed, row, row.id, index))
                yield Draw(row, index, messages, sampling, params.seed)

    def wanted(self, stage: StageSpec[S], pipeline: Pipeline, batch: Batch) -> Iterator[Wanted]:
        identity = self.model_identity(stage, pipeline, Environment(root=pipeline.project.root))
        model = model_digest(identity)
        last: Sequence[Mapping[str, Any]] | None = None
        messages, size = "", 0
        for draw in self.draws(stage, pipeline, batch.rows):
            if draw.messages is not last:  # the samples of a row share their messages
                last = draw.messages
                messages = messages_digest(draw.messages)
                size = prompt_bytes(draw.messages)
            key = request_key(model, messages, draw.params, draw.index)
            yield Wanted(key, partial(draw.key_v1, identity), size)

    async def sample(self, stage: StageSpec[S], batch: Batch, services: Services) -> tuple[list[Made], list[Record]]:
        """Take the samples of one batch: a trace or a failed row for each, and the completions they came from."""
        identity = self.model_identity(stage, services.pipeline, services.environment)
        draws = list(self.draws(stage, services.pipeline, batch.rows))
        requests = [draw.request(identity) for draw in draws]
        model, completer = self.billed_model(stage), self.completer(stage, services)
        answers = await services.complete(model, requests, stage.id, completer)
        made = [
            self._made(draw, request, answer, stage, services)
            for draw, request, answer in zip(draws, requests, answers, strict=True)
        ]
        return made, [answer for answer in answers if not isinstance(answer, RequestFailed)]

    async def run(self, stage: StageSpec[S], batch: Batch, services: Services) -> Result:
        made, records = await self.sample(stage, batch, services)
        return Result(made=made, numbers=spent(records, services.run_id))

    def _made(self, draw: Draw, request: ChatRequest, answer: Answer, stage: StageSpec[S], services: Services) -> Made:
        if isinstance(answer, RequestFailed):
            trace = self._trace(draw, request, stage, services, {"finish_reason": "error"})
            return Made(trace, fail(answer.kind, str(answer), owed=answer.retryable))
        completion = self.completion.model_validate(answer["completion"])
        prompt = services.pipeline.prompts[stage.params.prompt]
        opened = prompt.opened_in_prompt or self.opened_in_prompt(completion)
        reply = reply_fields(completion, prefill_of(request), opened_in_prompt=opened)
        written = {**reply, "cost": answer["cost"], **self.fields(stage, completion)}
        return Made(self._trace(draw, request, stage, services, written, answer), KEEP)

    def _trace(
        self,
        draw: Draw,
        request: ChatRequest,
        stage: StageSpec[S],
        services: Services,
        written: dict[str, Any],
        record: Record | None = None,
    ) -> Trace:
        """Describe one sample by everything that decided it, and by the response."""
        params = stage.params
        # What version 1 paid for is the trace that version 1 made of it: what hangs on its id is found again.
        key = request.key if record is None else record.get("key_v1", request.key)
        problem = draw.row.problem if isinstance(draw.row, Trace) else draw.row
        of = problem.id if key == request.key else problem.id_v1
        parents: tuple[Parent, ...] = ()
        turns: tuple[Turn, ...] = ()
        if isinstance(draw.row, Trace):
            parents = (Parent(id=draw.row.id, role=params.role),)
            turns = turns_after(draw.row, draw.messages) if params.writes == "turn" else ()
        return Trace(
            id=digest({"stage": stage.id, "problem": of, "request": key})[:ID_DIGITS],
            problem=problem,
            parents=parents,
            turns=turns,
            stage=stage.id,
            sample_index=draw.index,
            seed=draw.params.get("seed") if key == request.key else draw.seed_v1,
            temperature=self.temperature(stage),
            request_key=key,
            **origin_fields(self.billed_model(stage), params.prompt, draw.messages, services),
            **written,
        )


def origin_fields(
    teacher: str, prompt: str, messages: Sequence[Mapping[str, Any]], services: Services
) -> dict[str, Any]:
    """Return the fields of a trace that say which model wrote it and under which prompt."""
    spec, used, first = services.pipeline.models[teacher], services.pipeline.prompts[prompt], messages[0]
    return {
        "teacher": teacher,
        "model": spec.model,
        "revision": spec.recorded_revision(services.environment),
        "prompt": prompt,
        "prompt_digest": used.digest,
        "messages_digest": messages_digest(messages),
        "system": first["content"] if first["role"] == "system" else None,
        "style": used.style,
    }


def prefill_versions(pipeline: Pipeline, prompts: Iterable[str]) -> dict[str, Any]:
    """Return what a stage with these prompts adds to `uses`: nothing, unless a prefill has words.

    Until version 0.3, traces were without them.
    """
    worded = any(has_words(pipeline.prompts[name].prefill or "") for name in prompts)
    return {"versions": {"prefill": "2"}} if worded else {}


def prefill_of(request: ChatRequest) -> str:
    """Return the beginning of the model's own turn in a request; "" where there is none."""
    return str(request.messages[-1]["content"]) if request.has_prefill else ""


def reply_fields(completion: Completion, prefill: str = "", *, opened_in_prompt: bool) -> dict[str, Any]:
    """Return the fields of a trace that its completion decides, with the reasoning split from the answer.

    Args:
        completion: the completion.
        prefill: the beginning of the assistant's turn that it goes on with, whose words are the trace's too.
        opened_in_prompt: whether it starts inside of the thinking.
    """
    content, field = with_prefill(completion.content, completion.reasoning, prefill)
    reasoning, answer, thinking = split_reasoning(content, field, opened_in_prompt=opened_in_prompt)
    return {
        "reasoning": reasoning,
        "answer_text": answer,
        "thinking": thinking,
        "finish_reason": completion.finish_reason,
        "refusal": completion.refusal,
        "prompt_tokens": completion.prompt_tokens,
        "completion_tokens": completion.completion_tokens,
    }


def continued(trace: Trace, prompted: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the conversation of a trace and a prompt's messages after it; reasoning is left out, as servers do.

    The system message is the prompt's, or else the one that the trace was written under; worked examples of the prompt
    stand where it puts them, after the conversation.
    """
    system = [message for message in prompted if message["role"] == "system"]
    if not system and trace.system is not None:
        system = [{"role": "system", "content": trace.system}]
    turns = [turn.message() for turn in trace.messages]
    return [*system, *turns, *(message for message in prompted if message["role"] != "system")]


def turns_after(trace: Trace, messages: Sequence[Mapping[str, Any]]) -> tuple[Turn, ...]:
    """Return the turns between the question and the reply to `messages`, which go on with the trace."""
    written = (*trace.messages[1:],)
    asked = [message for message in messages if message["role"] != "system"][1 + len(written) :]
    prefill = bool(asked) and asked[-1]["role"] == "assistant"
    return (*written, *(Turn(role=one["role"], content=one["content"]) for one in (asked[:-1] if prefill else asked)))


def spent(records: Sequence[Record], run_id: str) -> dict[str, float]:
    """Add up what completions took, in all and by model and price, and under `paid_...` what this run paid of it."""
    numbers: dict[str, float] = {}
    paid = [record for record in records if record["run"] == run_id]
    for prefix, counted in (("", records), ("paid_", paid)):
        costs = [cost_of(record) for record in counted]
        numbers |= {
            f"{prefix}requests": len(counted),
            f"{prefix}prompt_tokens": sum(record["completion"]["prompt_tokens"] for record in counted),
            f"{prefix}completion_tokens": sum(record["completion"]["completion_tokens"] for record in counted),
            f"{prefix}cost": sum(cost for cost in costs if cost is not None),
            f"{prefix}unpriced": costs.count(None),
        }
    return numbers | billed(records)


def seed_of(start: int, row: Row, row_id: str, index: int) -> int:
    """Return the seed of one sample of a row, from the start that the stage was given."""
    kind = "trace" if isinstance(row, Trace) else "problem"
    return int(digest({"seed": start, kind: row_id, "sample": index})[:8], 16) >> 1
