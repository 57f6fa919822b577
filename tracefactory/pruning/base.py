"""What a pruner is: parameters, and a pure algorithm from traces cut into steps to results, over batched questions.

A pruner decides which steps of a trace stay. It does not know models, prompts or stores: it asks a student or a writer
through the protocols here, always for many traces at once, and it learns whether an answer is right from `Verify`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

from tracefactory.core.errors import UserError
from tracefactory.core.registry import Registry, registry
from tracefactory.core.rows import Frozen, Outcome, Problem, Thinking, Trace, Verdict
from tracefactory.text.steps import Granularity, Step, segment


class StepScores(Frozen):
    """What the student's token scores say of each step of a trace, in order; NaN where a step has no token.

    `tokens` counts; `surprisal` is the mean of -ln p and `first_surprisal` the -ln p of the first token, in nats;
    `entropy` is the sum of token entropies, in nats.
    """

    tokens: tuple[int, ...]
    surprisal: tuple[float, ...]
    first_surprisal: tuple[float, ...]
    entropy: tuple[float, ...]


class PruneItem(Frozen):
    """A parent trace, its reasoning cut into steps and, where measured, the student's scores of these steps."""

    trace: Trace
    steps: tuple[Step, ...]
    scores: StepScores | None = None

    @classmethod
    def of(
        cls, trace: Trace, granularity: Granularity = Granularity.STEP, scores: StepScores | None = None
    ) -> PruneItem:
        """Cut the reasoning of a trace into steps; `scores` are those of the same steps."""
        return cls(trace=trace, steps=segment(trace.reasoning, granularity), scores=scores)

    def step(self, index: int) -> str:
        """Return the characters of one step."""
        return self.steps[index].of(self.trace.reasoning)

    def join(self, kept: Iterable[int]) -> str:
        """Return the characters of some steps, in the order given."""
        return "".join(map(self.step, kept))

    def prefix(self, count: int) -> str:
        """Return the characters of the first `count` steps."""
        return self.trace.reasoning[: self.steps[count - 1].end] if count else ""


class PruneResult(Frozen):
    """What came of one parent: the steps it keeps, what was written after them, and the answer text.

    `reasoning` is the kept steps joined, then `added` (empty for pruners that only select); white space at the end of
    a cut is not kept. With a `reason` the parent stands, all of its steps kept; `detail` says more. `calls` counts the
    prefixes or texts a model was asked about for this trace, `samples` the completions that took, `unsure` the answers
    a verifier failed on. `closed` is false when the thinking never ended.
    """

    id: str
    kept: tuple[int, ...]
    reasoning: str
    answer_text: str
    added: str = ""
    calls: int = 0
    samples: int = 0
    unsure: int = 0
    closed: bool = True
    reason: str | None = None
    detail: str | None = None


class Cost(Frozen):
    """What one result cost: see `PruneResult`."""

    calls: int = 0
    samples: int = 0
    unsure: int = 0


FREE = Cost()


class Asks(Frozen):
    """How many completions are asked for: `answers` as the pruner's prompt says, `continuations` of a beginning."""

    answers: int = 0
    continuations: int = 0


def keep(
    item: PruneItem,
    kept: Iterable[int],
    answer_text: str,
    *,
    added: str = "",
    closed: bool = True,
    cost: Cost = FREE,
) -> PruneResult:
    """Return the result that keeps some steps of a parent, with an answer text."""
    indices = tuple(kept)
    reasoning = item.join(indices) + added
    if not added and len(indices) < len(item.steps):
        reasoning = reasoning.rstrip()
    return PruneResult(
        id=item.trace.id,
        kept=indices,
        reasoning=reasoning,
        answer_text=answer_text,
        added=added,
        closed=closed,
        **cost.model_dump(),
    )


def parent(item: PruneItem, reason: str, cost: Cost = FREE, detail: str | None = None) -> PruneResult:
    """Return the result that leaves the parent as it is, with the reason why."""
    return PruneResult(
        id=item.trace.id,
        kept=tuple(range(len(item.steps))),
        reasoning=item.trace.reasoning,
        answer_text=item.trace.answer_text,
        closed=item.trace.thinking is Thinking.CLOSED,
        reason=reason,
        detail=detail,
        **cost.model_dump(),
    )


class ConcludeItem(Frozen):
    """A question and the reasoning kept so far. `sample` numbers the samples of one prefix; 0.0 decodes greedily."""

    id: str
    question: str
    reasoning: str
    sample: int = 0
    temperature: float = 0.0


class RewriteItem(Frozen):
    """A whole reasoning to be written anew in about `words` words."""

    id: str
    question: str
    reasoning: str
    answer_text: str
    words: int


class Conclusion(Frozen):
    """What a model wrote. `reasoning` holds what it thought before `text`, if it was asked to go on thinking.

    `closed` is false when it was cut off before its end, so that `text` may stop anywhere.
    `error` says that there is no answer to judge, in snake_case; `context_length` that the prompt was too long.
    """

    text: str = ""
    reasoning: str = ""
    closed: bool = True
    error: str | None = None


CONTEXT_LENGTH = "context_length"


class Student(Protocol):
    """The student model, asked in batches. Answers come in the order of the items, one for each."""

    async def conclude(self, items: Sequence[ConcludeItem]) -> list[Conclusion]:
        """Answer each question from the reasoning given and nothing else (prompt: prune_conclude)."""
        ...

    async def judge(self, items: Sequence[ConcludeItem]) -> list[Conclusion]:
        """Say whether each reasoning is enough to answer (prompt: prune_sufficient)."""
        ...

    async def extend(self, items: Sequence[ConcludeItem]) -> list[Conclusion]:
        """Go on with each reasoning, as if the student had begun it, through to an answer."""
        ...


class Writer(Protocol):
    """A model that writes reasoning anew, asked in batches."""

    async def rewrite(self, items: Sequence[RewriteItem]) -> list[Conclusion]:
        """Write each reasoning at its target length (prompt: prune_rewrite); the text comes back as `reasoning`."""
        ...


Verify = Callable[[list[tuple[Problem, str]]], Awaitable[list[Verdict]]]


@dataclass(frozen=True)
class Tools:
    """What pruners may ask. The stage gives what the pruner's `needs` names."""

    verify: Verify
    student: Student | None = None
    writer: Writer | None = None

    def the_student(self, pruner: str) -> Student:
        """Return the student.

        Raises:
            UserError: when the pipeline named none.
        """
        if self.student is None:
            raise UserError(f"prune: {pruner} asks a student: name one with `model:`")
        return self.student

    def the_writer(self, pruner: str) -> Writer:
        """Return the writer.

        Raises:
            UserError: when the pipeline named none.
        """
        if self.writer is None:
            raise UserError(f"prune: {pruner} asks a model to write: name one with `model:`")
        return self.writer


class Pruner(Frozen, ABC):
    """A registered pruner; its fields are its parameters. `needs` names the tools and measures it cannot do without."""

    version: ClassVar[str] = "1"
    needs: ClassVar[frozenset[str]] = frozenset()  # of: verify, student, judge, writer, scores

    @abstractmethod
    async def prune(self, items: Sequence[PruneItem], tools: Tools) -> list[PruneResult]:
        """Return one result per item, in their order. All items advance together, so that questions are batched."""

    def asks_at_most(self, item: PruneItem) -> Asks:
        """Return the most completions that pruning an item can take, known before anything is asked."""
        return Asks()


PRUNERS: Registry[type[Pruner]] = registry("pruner")


def correct(verdict: Verdict) -> bool:
    """Tell whether a verdict proves the answer right; a verifier that failed proves nothing."""
    return verdict.outcome is Outcome.CORRECT
