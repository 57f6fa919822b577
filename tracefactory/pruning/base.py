"""The interface of pruners: parameters, and an algorithm from traces in steps to results.

A pruner selects the steps of a trace to keep. It has no access to models, prompts or stores: it sends batched requests
to a student or a writer through the protocols in this module, and verifies answers with `Verify`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

from pydantic import Field

from tracefactory.core.columns import Column
from tracefactory.core.errors import UserError
from tracefactory.core.registry import Registry, registry
from tracefactory.core.rows import Frozen, Outcome, Problem, Thinking, Trace, Verdict
from tracefactory.text.steps import Granularity, Step, segment


class StepScores(Frozen):
    """The student's token scores aggregated by step, in order; NaN for a step without tokens.

    `tokens` is their number; `surprisal` is the mean of -ln p and `first_surprisal` the -ln p of the first token, in
    nats; `entropy` is the sum of token entropies, in nats.
    """

    tokens: tuple[int, ...]
    surprisal: tuple[float, ...]
    first_surprisal: tuple[float, ...]
    entropy: tuple[float, ...]


class PruneItem(Frozen):
    """A parent trace, the steps of its reasoning, and the student's scores of these steps if they were measured."""

    trace: Trace
    steps: tuple[Step, ...]
    scores: StepScores | None = None

    @classmethod
    def of(
        cls, trace: Trace, granularity: Granularity = Granularity.STEP, scores: StepScores | None = None
    ) -> PruneItem:
        """Return a trace with the steps of its reasoning.

        Args:
            trace: the trace.
            granularity: the size of the steps.
            scores: the student's scores of the same steps, if they were measured.
        """
        return cls(trace=trace, steps=segment(trace.reasoning, granularity), scores=scores)

    def step(self, index: int) -> str:
        """Return the text of one step."""
        return self.steps[index].of(self.trace.reasoning)

    def join(self, kept: Iterable[int]) -> str:
        """Return the text of the given steps, in their order."""
        return "".join(map(self.step, kept))

    def prefix(self, count: int) -> str:
        """Return the text of the first `count` steps."""
        return self.trace.reasoning[: self.steps[count - 1].end] if count else ""


Stops = Literal["closed", "any"]
Stating = Literal["explicit", "result"]
"""What states an answer: the usual words and boxes, or closing "so ..." sentences too."""


class PruneResult(Frozen):
    """The result for one parent: the kept steps, the text added after them, and the answer text.

    `reasoning` is the kept steps joined, then `added` (empty for pruners that only select), without white space at the
    end of a cut. With a `reason`, the parent trace is kept with all of its steps; `detail` has more information.
    `calls` is the number of prefixes or texts sent to a model for this trace, `samples` the number of completions,
    `unsure` the number of answers on which the verifier failed. `closed` is false when the thinking was not closed.
    `stops` is `any` where the kept text may end with a doubt, a question or an announcement. `stated` is how the kept
    reasoning itself states the answer, for pruners that cut because it does; with `stated_last`, its last step does.
    `measures` are the pruner's own (`Pruner.columns`).
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
    stops: Stops = "closed"
    stated: Stating | None = None
    stated_last: bool = False
    measures: Mapping[str, float] = Field(default_factory=dict)
    reason: str | None = None
    detail: str | None = None


class Cost(Frozen):
    """The costs of one result (see `PruneResult`)."""

    calls: int = 0
    samples: int = 0
    unsure: int = 0


FREE = Cost()


class Asks(Frozen):
    """A number of completions: `answers` to the pruner's prompt, and `continuations` of a reasoning prefix."""

    answers: int = 0
    continuations: int = 0


def keep(
    item: PruneItem,
    kept: Iterable[int],
    answer_text: str,
    *,
    added: str = "",
    closed: bool = True,
    stops: Stops = "closed",
    stated: Stating | None = None,
    stated_last: bool = False,
    measures: Mapping[str, float] | None = None,
    cost: Cost = FREE,
) -> PruneResult:
    """Return a result that keeps some steps of a parent.

    Args:
        item: the parent.
        kept: the indices of the kept steps, in order.
        answer_text: the answer text of the result.
        added: text after the kept steps that is not from the parent.
        closed: whether the thinking is closed.
        stops: whether the kept text may end with a doubt, a question or an announcement (`any`).
        stated: how the kept reasoning states the answer itself; None where it need not.
        stated_last: whether its last step states it.
        measures: the pruner's own measures.
        cost: the costs of the result.
    """
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
        stops=stops,
        stated=stated,
        stated_last=stated_last,
        measures=measures or {},
        **cost.model_dump(),
    )


def parent(
    item: PruneItem,
    reason: str,
    cost: Cost = FREE,
    detail: str | None = None,
    measures: Mapping[str, float] | None = None,
) -> PruneResult:
    """Return the result that keeps the parent trace unchanged.

    Args:
        item: the parent.
        reason: why it is kept, a snake_case identifier.
        cost: the costs of the rejected result.
        detail: more information for a person.
        measures: the pruner's own measures.
    """
    return PruneResult(
        id=item.trace.id,
        kept=tuple(range(len(item.steps))),
        reasoning=item.trace.reasoning,
        answer_text=item.trace.answer_text,
        closed=item.trace.thinking is Thinking.CLOSED,
        measures=measures or {},
        reason=reason,
        detail=detail,
        **cost.model_dump(),
    )


class ConcludeItem(Frozen):
    """A question and a reasoning prefix. `sample` is the index among the samples of the prefix."""

    id: str
    question: str
    reasoning: str
    sample: int = 0
    temperature: float = 0.0


class RewriteItem(Frozen):
    """A reasoning text to rewrite in about `words` words."""

    id: str
    question: str
    reasoning: str
    answer_text: str
    words: int


class Conclusion(Frozen):
    """A completion of a model. `reasoning` is the thinking before `text`, if the request was to continue the thinking.

    `closed` is false when the completion was truncated. `error` is a snake_case reason why there is no answer to judge;
    `context_length` means that the prompt was too long.
    """

    text: str = ""
    reasoning: str = ""
    closed: bool = True
    error: str | None = None


CONTEXT_LENGTH = "context_length"


class ScoreItem(Frozen):
    """A reasoning and the answer after it, in the words `before` + `answer` + `after`, to be scored by the student.

    Only the tokens of the reasoning that end after the character `since` are scored, and those of the answer with the
    sign that ends it.
    """

    id: str
    question: str
    reasoning: str
    before: str
    answer: str
    after: str
    since: int = 0


class TextScores(Frozen):
    """The student's log-probabilities (nats) of a `ScoreItem`.

    `logprobs` are those of the tokens of the reasoning that were asked for, `ends` the characters of the reasoning at
    which these tokens end, `answer` those of the answer's tokens. `error` is a snake_case reason why there are none.
    """

    ends: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    answer: tuple[float, ...] = ()
    error: str | None = None


class Student(Protocol):
    """The student model. Requests are batched; the answers are in the order of the items, one for each."""

    async def conclude(self, items: Sequence[ConcludeItem]) -> list[Conclusion]:
        """Answer each question from its reasoning prefix (prompt: prune_conclude)."""
        ...

    async def judge(self, items: Sequence[ConcludeItem]) -> list[Conclusion]:
        """Judge whether each reasoning prefix suffices to answer (prompt: prune_sufficient)."""
        ...

    async def extend(self, items: Sequence[ConcludeItem]) -> list[Conclusion]:
        """Continue each reasoning prefix to an answer, as if the student had written it."""
        ...


class Writer(Protocol):
    """A model that rewrites reasoning. Requests are batched."""

    async def rewrite(self, items: Sequence[RewriteItem]) -> list[Conclusion]:
        """Rewrite each reasoning at its target length (prompt: prune_rewrite); the text is returned as `reasoning`."""
        ...


class Scorer(Protocol):
    """The student as it scores given text. Requests are batched."""

    async def score(self, items: Sequence[ScoreItem]) -> list[TextScores]:
        """Score each reasoning with its answer, as in training; one result for each item, in order."""
        ...


Verify = Callable[[list[tuple[Problem, str]]], Awaitable[list[Verdict]]]


@dataclass(frozen=True)
class Tools:
    """The services for pruners. The stage provides those in the pruner's `needs`.

    `count` returns the length of a text: in the student's tokens where the stage names a student, else in characters.
    """

    verify: Verify
    student: Student | None = None
    writer: Writer | None = None
    scorer: Scorer | None = None
    count: Callable[[str], int] = len

    def require_student(self, pruner: str) -> Student:
        """Return the student.

        Raises:
            UserError: when the pipeline has none.
        """
        if self.student is None:
            raise UserError(f"prune: {pruner} needs a student; set `model:`")
        return self.student

    def require_writer(self, pruner: str) -> Writer:
        """Return the writer.

        Raises:
            UserError: when the pipeline has none.
        """
        if self.writer is None:
            raise UserError(f"prune: {pruner} needs a model that writes; set `model:`")
        return self.writer

    def require_scorer(self, pruner: str) -> Scorer:
        """Return the student that scores.

        Raises:
            UserError: when the pipeline has none.
        """
        if self.scorer is None:
            raise UserError(f"prune: {pruner} needs a student that scores text; set `student:`")
        return self.scorer


class Pruner(Frozen, ABC):
    """A registered pruner; its fields are its parameters. `needs` names the services and measures that it requires.

    `concludes` is whether the student concludes from the pruned reasoning in the pruner itself, so that its stage does
    not have it checked by default. `columns` are the measures that its results have. `caution` is a sentence for the
    card on what its choice of steps does not show. `changes` says for each version what it cuts otherwise than the
    version before; `plan` shows it.
    """

    version: ClassVar[str] = "1"
    changes: ClassVar[Mapping[str, str]] = {}
    concludes: ClassVar[bool] = False
    needs: ClassVar[frozenset[str]] = frozenset()  # of: verify, student, judge, writer, scores, scorer
    columns: ClassVar[tuple[Column, ...]] = ()
    caution: ClassVar[str] = ""

    @abstractmethod
    async def prune(self, items: Sequence[PruneItem], tools: Tools) -> list[PruneResult]:
        """Return one result per item, in order. All items advance in parallel, so that requests are batched."""

    def asks_at_most(self, item: PruneItem) -> Asks:
        """Return an upper bound on the completions for an item, before any request is sent."""
        return Asks()


PRUNERS: Registry[type[Pruner]] = registry("pruner")


def correct(verdict: Verdict) -> bool:
    """Return whether the answer was verified as correct; a failed verifier does not count."""
    return verdict.outcome is Outcome.CORRECT
