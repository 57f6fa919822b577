"""The student and the writer of a prune stage: a served model, asked through the request store, so paid for once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tracefactory.core.fingerprint import digest
from tracefactory.core.model import ChatRequest, Completion, RequestFailed
from tracefactory.core.rows import Thinking
from tracefactory.core.stage import Record, Services
from tracefactory.pruning import ConcludeItem, Conclusion, RewriteItem
from tracefactory.stages.prune._params import AskParams, JudgeParams, RewriteParams
from tracefactory.text.prompts import Prompt
from tracefactory.text.reasoning import split_reasoning
from tracefactory.text.steps.label import LabelItem


@dataclass(frozen=True)
class _Question:
    """One request to make: for which trace, with which prompt and values, sampled how."""

    id: str
    prompt: Prompt
    values: dict[str, Any]
    max_tokens: int
    temperature: float
    sample: int = 0


@dataclass
class ServedModel:
    """Asks one model all questions of a batch at once.

    `owners` are the ids of the traces' problems, by trace. `records` are the completions that were used, by request
    key; `failed` is, by trace, the failure of a request that another run should try again.
    """

    params: AskParams
    stage_id: str
    services: Services
    owners: Mapping[str, str]
    records: dict[str, Record] = field(default_factory=dict)
    failed: dict[str, RequestFailed] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._identity = self.services.pipeline.models[self.params.model].identity(self.services.environment)

    async def conclude(self, items: Sequence[ConcludeItem]) -> list[Conclusion]:
        """Have the student answer from beginnings of reasoning; an answer that was cut off is not closed."""
        prompt = self._prompt("prompt")
        answers = await self._ask([_conclude(item, prompt, self.params.max_tokens) for item in items])
        return [_conclusion(answer, opened=prompt.opened_in_prompt) for answer in answers]

    judge = conclude

    async def extend(self, items: Sequence[ConcludeItem]) -> list[Conclusion]:
        """Have the student go on with reasoning; one that is cut off has not closed its thinking."""
        assert isinstance(self.params, JudgeParams)
        prompt = self._prompt("continue_prompt")
        answers = await self._ask([_conclude(item, prompt, self.params.continue_max_tokens) for item in items])
        return [_conclusion(answer, opened=True) for answer in answers]

    async def label(self, items: Sequence[LabelItem]) -> list[str]:
        """Have a model type steps; one that fails says nothing."""
        prompt = self._prompt("prompt")
        questions = [
            _Question(
                item.id, prompt, {"question": item.question, "reasoning": item.numbered()}, self.params.max_tokens, 0.0
            )
            for item in items
        ]
        return [_conclusion(answer, opened=False).text for answer in await self._ask(questions)]

    async def rewrite(self, items: Sequence[RewriteItem]) -> list[Conclusion]:
        """Have the writer write reasoning anew."""
        assert isinstance(self.params, RewriteParams)
        temperature, prompt = self.params.temperature, self._prompt("prompt")
        questions = [
            _Question(item.id, prompt, item.model_dump(exclude={"id"}), self.params.max_tokens, temperature)
            for item in items
        ]
        return [_written(answer) for answer in await self._ask(questions)]

    async def _ask(self, questions: Sequence[_Question]) -> list[Completion | RequestFailed]:
        requests = [self._request(question) for question in questions]
        outcomes = await self.services.complete(self.params.model, requests, self.stage_id)
        answers: list[Completion | RequestFailed] = []
        for question, request, outcome in zip(questions, requests, outcomes, strict=True):
            if isinstance(outcome, RequestFailed):
                if outcome.retryable:
                    self.failed[question.id] = outcome
                answers.append(outcome)
            else:
                self.records[request.key] = outcome
                answers.append(Completion.model_validate(outcome["completion"]))
        return answers

    def _request(self, question: _Question) -> ChatRequest:
        sampling: dict[str, Any] = {"temperature": question.temperature, "max_tokens": question.max_tokens}
        if question.temperature > 0:
            drawn = {"seed": self.params.seed, "trace": question.id, "sample": question.sample}
            sampling |= {"top_p": self.params.top_p, "seed": int(digest(drawn)[:8], 16) >> 1}
        return ChatRequest(
            model_identity=self._identity,
            messages=tuple(question.prompt.render(**question.values)),
            params=sampling,
            sample_index=question.sample,
            near=self.owners[question.id],
        )

    def _prompt(self, key: str) -> Prompt:
        prompt: Prompt = self.services.pipeline.prompts[getattr(self.params, key)]
        return prompt


def _conclude(item: ConcludeItem, prompt: Prompt, max_tokens: int) -> _Question:
    values = {"question": item.question, "reasoning": item.reasoning}
    return _Question(item.id, prompt, values, max_tokens, item.temperature, item.sample)


def _conclusion(answer: Completion | RequestFailed, *, opened: bool) -> Conclusion:
    if isinstance(answer, RequestFailed):
        return Conclusion(error=answer.kind)
    reasoning, text, thinking = split_reasoning(answer.content, answer.reasoning, opened_in_prompt=opened)
    closed = thinking is not Thinking.OPEN and answer.finish_reason != "length"
    return Conclusion(text=text, reasoning=reasoning, closed=closed)


def _written(answer: Completion | RequestFailed) -> Conclusion:
    """Read a rewrite: the answer, or what is in the tags when a model answers in those the prompt shows."""
    if isinstance(answer, RequestFailed):
        return Conclusion(error=answer.kind)
    reasoning, text, thinking = split_reasoning(answer.content, answer.reasoning, opened_in_prompt=False)
    whole = thinking is not Thinking.OPEN and answer.finish_reason != "length"
    return Conclusion(reasoning=text if text.strip() else reasoning, closed=whole)
