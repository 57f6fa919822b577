"""Remove the steps that neither the answer nor the steps after them need, by the student's own log-probabilities.

Every step is tested by its removal: the student scores the gold answer after the question, the reasoning and a cue, and
the steps that come after, with the step and without it. A step is removed where neither loses more than a limit.

The probability of the answer alone cannot tell: the step that contains the answer gives it away, so that every other
step can be removed without a loss. The steps after are what shows that a step is needed: without "5 * 7 = 35", the
student does not expect "35 + 7". Sources: the perplexity of the chain without a step, by which SPIRIT finds critical
steps (arXiv 2502.13260; computed there over the whole output); the probability of the gold answer, by which CoRD ranks
steps (ACL 2026). Here the two are separate limits, and a removal that the rules of `tracefactory.pruning.reverify`
refuse, because a value or a name would be undefined, is not tested.

A trace of n steps costs n + 1 scored sequences, and its problem one for the control without reasoning. One step of each
trace is tested at a time, because what was removed before decides; the traces of a batch are tested together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import ClassVar, Literal

from pydantic import Field

from tracefactory.core.columns import Column
from tracefactory.core.rows import Thinking
from tracefactory.pruning.base import (
    CONTEXT_LENGTH,
    PRUNERS,
    Cost,
    PruneItem,
    Pruner,
    PruneResult,
    ScoreItem,
    Scorer,
    TextScores,
    Tools,
    keep,
    parent,
)
from tracefactory.pruning.reverify import structure

BEFORE, AFTER = "The final answer is \\boxed{", "}."
"""The cue between the reasoning and the gold answer, and what ends the answer."""

KEPT, WHOLE, EMPTY = "prune_answer_logprob", "prune_answer_logprob_parent", "prune_answer_logprob_empty"


@PRUNERS.register("answer_likelihood")
class AnswerLikelihood(Pruner):
    """Remove the steps without which the student finds the answer and the steps after them as likely as before."""

    needs: ClassVar[frozenset[str]] = frozenset({"scorer"})
    columns: ClassVar[tuple[Column, ...]] = (
        Column(
            name=KEPT,
            description="Mean log-probability of a token of the gold answer for the student, after the reasoning that "
            "is kept.",
            unit="nats per token",
            direction="higher",
        ),
        Column(
            name=WHOLE,
            description="The same after the whole reasoning of the parent.",
            unit="nats per token",
            direction="higher",
        ),
        Column(
            name=EMPTY,
            description="The same without any reasoning: the control. Where it is about as high, the student knows the "
            "answer, and the answer tells nothing of the reasoning.",
            unit="nats per token",
            direction="lower",
        ),
    )

    max_drop: float = Field(
        default=0.1,
        ge=0,
        description="Largest loss of log-probability of the gold answer when a step is removed, in nats per token of "
        "the answer. The loss is from the highest value so far, so that losses do not add up.",
    )
    over: Literal["answer_and_after", "answer"] = Field(
        default="answer_and_after",
        description="What a removed step must not make less likely: the gold answer and the kept steps after the step, "
        "or the answer alone, which does not tell needed steps from others.",
    )
    max_drop_after: float = Field(
        default=1.0,
        ge=0,
        description="Largest loss of log-probability of the kept steps after a step when it is removed, in nats, "
        "summed over their tokens.",
    )
    order: Literal["last_first", "first_first"] = Field(
        default="last_first",
        description="The order in which steps are tested. last_first tests a step on the steps after it that were "
        "kept; first_first keeps the later one of two steps that say the same.",
    )
    max_steps: int = Field(
        default=100, ge=2, description="A trace with more steps is kept as it is: each one is a scored sequence."
    )
    max_tokens: int = Field(
        default=4096, ge=1, description="A trace whose reasoning has more tokens of the student is kept as it is."
    )

    async def prune(self, items: Sequence[PruneItem], tools: Tools) -> list[PruneResult]:
        """Score the whole reasoning and the control of all traces, then test one step of each trace per round."""
        scorer = tools.require_scorer("answer_likelihood")
        reasons = {item.trace.id: self._reason_to_keep(item, tools) for item in items}
        searches = {item.trace.id: _Search(item, self) for item in items if reasons[item.trace.id] is None}
        await _begin(list(searches.values()), scorer)
        while asked := [(one, trial) for one in searches.values() if (trial := one.next()) is not None]:
            scores = await scorer.score([one.without(trial) for one, trial in asked])
            for (one, trial), found in zip(asked, scores, strict=True):
                one.record(trial, found)
        return [
            searches[item.trace.id].result()
            if item.trace.id in searches
            else parent(item, reasons[item.trace.id] or "no_reasoning")
            for item in items
        ]

    def _reason_to_keep(self, item: PruneItem, tools: Tools) -> str | None:
        """Return the reason to keep the parent without scoring it, None when it is scored."""
        if not item.steps:
            return "no_reasoning"
        if item.trace.thinking is Thinking.OPEN:
            return "thinking_not_closed"
        if not (item.trace.problem.answer or "").strip():
            return "no_gold"
        if len(item.steps) < 2:
            return "one_step"
        if len(item.steps) > self.max_steps:
            return "too_many_steps"
        return "too_long_to_score" if tools.count(item.trace.reasoning) > self.max_tokens else None


async def _begin(searches: Sequence[_Search], scorer: Scorer) -> None:
    """Score the whole reasoning of every trace, and the control of every problem."""
    controls = {one.item.trace.problem_id: one for one in reversed(searches)}  # the first trace of each problem
    asked = [one.whole() for one in searches] + [one.empty() for one in controls.values()]
    scores = await scorer.score(asked) if asked else []
    empty = dict(zip(controls, scores[len(searches) :], strict=True))
    for one, found in zip(searches, scores, strict=False):
        one.begin(found, empty[one.item.trace.problem_id])
        one.calls = 1 + (controls[one.item.trace.problem_id] is one)


@dataclass
class _Search:
    """The state of one trace: the kept steps, and the scores of their text.

    `ends` and `logprobs` are those of the tokens of the kept text; `best` is the highest mean log-probability of the
    answer so far, `answer` that of the kept text.
    """

    item: PruneItem
    params: AnswerLikelihood
    calls: int = 0
    answer: float = 0.0
    best: float = 0.0
    error: str | None = None
    measures: dict[str, float] = field(default_factory=dict)
    ends: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.kept = list(range(len(self.item.steps)))
        self.left = list(self.kept if self.params.order == "last_first" else reversed(self.kept))

    def whole(self) -> ScoreItem:
        """Return the request for the whole reasoning."""
        return self._asked(self.item.trace.reasoning.rstrip(), 0)

    def empty(self) -> ScoreItem:
        """Return the request for the control without reasoning."""
        return self._asked("", 0)

    def without(self, step: int) -> ScoreItem:
        """Return the request for the kept text without a step; what is before the step has its scores."""
        kept = [index for index in self.kept if index != step]
        return self._asked(self.item.join(kept).rstrip(), self._start(step))

    def begin(self, whole: TextScores, empty: TextScores) -> None:
        """Record the scores of the whole reasoning, and of the control if it could be scored."""
        if whole.error is not None:
            self.error, self.left = whole.error, []
            return
        self.ends, self.logprobs = list(whole.ends), list(whole.logprobs)
        self.answer = self.best = self.measures[WHOLE] = fmean(whole.answer)
        if empty.error is None:
            self.measures[EMPTY] = fmean(empty.answer)

    def next(self) -> int | None:
        """Return the next step to test, None at the end; a removal that leaves a gap is not tested."""
        while self.left:
            step = self.left.pop()
            kept = [index for index in self.kept if index != step]
            if kept and structure(self.item, keep(self.item, kept, BEFORE)).reason is None:
                return step
        return None

    def record(self, step: int, scores: TextScores) -> None:
        """Record the scores of the kept text without a step, and remove the step if it loses little."""
        self.calls += 1
        if scores.error is not None:
            self.error, self.left = scores.error, []
            return
        start = self._start(step)
        end = start + len(self.item.step(step))
        answer = fmean(scores.answer)
        lost = sum(one for at, one in self._tokens() if at > end) - sum(scores.logprobs)
        after = self.params.over == "answer_and_after" and lost > self.params.max_drop_after
        if after or self.best - answer > self.params.max_drop:
            return
        before = [(at, one) for at, one in self._tokens() if at <= start]
        self.ends = [*(at for at, _ in before), *scores.ends]
        self.logprobs = [*(one for _, one in before), *scores.logprobs]
        self.kept.remove(step)
        self.answer, self.best = answer, max(self.best, answer)

    def result(self) -> PruneResult:
        """Return the result of the finished search."""
        cost = Cost(calls=self.calls)
        if self.error is not None:
            reason = "too_long_to_score" if self.error == CONTEXT_LENGTH else "student_error"
            return parent(self.item, reason, cost, self.error, self.measures)
        self.measures[KEPT] = self.answer
        if len(self.kept) == len(self.item.steps):
            return parent(self.item, "nothing_to_remove", cost, measures=self.measures)
        return keep(self.item, self.kept, self.item.trace.answer_text, measures=self.measures, cost=cost)

    def _tokens(self) -> list[tuple[int, float]]:
        return list(zip(self.ends, self.logprobs, strict=True))

    def _start(self, step: int) -> int:
        """Return the character of the kept text at which a step starts."""
        return sum(len(self.item.step(index)) for index in self.kept if index < step)

    def _asked(self, reasoning: str, since: int) -> ScoreItem:
        trace = self.item.trace
        return ScoreItem(
            id=trace.id,
            question=trace.problem.question,
            reasoning=reasoning,
            before=BEFORE,
            answer=(trace.problem.answer or "").strip(),
            after=AFTER,
            since=since,
        )
