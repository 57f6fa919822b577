"""Keep the shortest prefix found from which the student gives the correct answer.

Source: Efficient Long CoT Reasoning in Small Language Models (arXiv 2505.18440): binary cutting with backtracking, with
the student that will be trained. The paper assumes that the whole trace is valid; here the whole trace is tested if no
shorter prefix passed. Prefixes that end with a doubt, a question or an announcement ("Wait, ...") are not candidates:
with a conclusion directly after them, they would teach the student to doubt and then to answer regardless.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from tracefactory.core.rows import Outcome, Thinking
from tracefactory.pruning.base import (
    CONTEXT_LENGTH,
    PRUNERS,
    Asks,
    ConcludeItem,
    Cost,
    PruneItem,
    Pruner,
    PruneResult,
    Tools,
    correct,
    keep,
    parent,
)
from tracefactory.pruning.search import Search, Test, max_calls, shortest_prefixes
from tracefactory.text.steps.ending import leaves_open


@PRUNERS.register("binary_cut")
class BinaryCut(Pruner):
    """Keep the shortest prefix found from which the student gives the correct answer.

    A truncated answer does not count, because its last number can be correct by chance.
    """

    version: ClassVar[str] = "3"
    needs: ClassVar[frozenset[str]] = frozenset({"verify", "student"})

    samples: int = Field(default=1, ge=1, description="Answers of the student to each prefix; one is greedy.")
    valid: int = Field(default=1, ge=1, description="How many of the answers must be correct.")
    temperature: float = Field(default=0.6, ge=0, description="Sampling temperature, where several are drawn.")
    conclusion: Literal["student", "original"] = Field(
        default="student",
        description="The answer text of the pruned trace: the student's first correct answer, or the original answer "
        "text; a trace with unclosed thinking always gets the student's.",
    )

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.valid > self.samples:
            raise ValueError(f"valid: {self.valid} of {self.samples} samples cannot be correct")
        return self

    async def prune(self, items: Sequence[PruneItem], tools: Tools) -> list[PruneResult]:
        """Search all traces in parallel; each round sends one batch of requests to the student."""
        run = _Run(self, [item for item in items if item.steps], tools)
        searches = await shortest_prefixes([len(ends) for ends in run.ends], run.ask)
        results = [run.result(number, search) for number, search in enumerate(searches)]
        found = {result.id: result for result in results}
        return [found.get(item.trace.id) or parent(item, "no_reasoning") for item in items]

    def asks_at_most(self, item: PruneItem) -> Asks:
        """Return the maximum number of tests of the search, times the samples."""
        return Asks(answers=max_calls(len(prefix_ends(item))) * self.samples if item.steps else 0)


def prefix_ends(item: PruneItem) -> list[int]:
    """Return the numbers of steps of the candidate prefixes. The whole reasoning is always a candidate."""
    count = len(item.steps)
    return [*(end for end in range(1, count) if not leaves_open(item.step(end - 1))), count]


class _Run:
    """The state of one batch: the correct answer texts by (trace, prefix), and errors; prefixes count from 1."""

    def __init__(self, params: BinaryCut, items: list[PruneItem], tools: Tools) -> None:
        self.params, self.items, self.tools = params, items, tools
        self.ends = [prefix_ends(item) for item in items]
        self.student = tools.require_student("binary_cut")
        self.right: dict[tuple[int, int], str] = {}
        self.unsure: defaultdict[int, int] = defaultdict(int)
        self.errors: dict[int, str] = {}

    async def ask(self, asking: Sequence[tuple[int, int]]) -> list[Test]:
        """Test one prefix of each trace: sample `samples` answers of the student and verify them."""
        many = self.params.samples
        replies = await self.student.conclude(
            [
                ConcludeItem(
                    id=self.items[number].trace.id,
                    question=self.items[number].trace.problem.question,
                    reasoning=self.items[number].prefix(self.ends[number][count - 1]),
                    sample=sample,
                    temperature=self.params.temperature if many > 1 else 0.0,
                )
                for number, count in asking
                for sample in range(many)
            ]
        )
        owners = [owner for owner in asking for _ in range(many)]
        finished = [reply.error is None and reply.closed for reply in replies]
        answered = [one for one, whole in zip(zip(owners, replies, strict=True), finished, strict=True) if whole]
        pairs = [(self.items[number].trace.problem, reply.text) for (number, _), reply in answered]
        verdicts = await self.tools.verify(pairs) if pairs else []
        votes: defaultdict[tuple[int, int], int] = defaultdict(int)
        for (owner, reply), verdict in zip(answered, verdicts, strict=True):
            self.unsure[owner[0]] += verdict.outcome is Outcome.VERIFIER_ERROR
            if correct(verdict):
                votes[owner] += 1
                self.right.setdefault(owner, reply.text)
        failures = {owner: reply.error for owner, reply in zip(owners, replies, strict=True) if reply.error}
        outcomes: list[Test] = []
        for owner in asking:
            error = failures.get(owner)
            if votes[owner] >= self.params.valid:
                outcomes.append(Test.PASSED)
            elif error == CONTEXT_LENGTH:
                outcomes.append(Test.TOO_LONG)
            elif error:
                self.errors[owner[0]] = error
                outcomes.append(Test.BROKEN)
            else:
                outcomes.append(Test.FAILED)
        return outcomes

    def result(self, number: int, search: Search) -> PruneResult:
        """Return the result of a finished search."""
        item = self.items[number]
        cost = Cost(calls=search.calls, samples=search.calls * self.params.samples, unsure=self.unsure[number])
        if search.broken:
            return parent(item, "student_error", cost, self.errors[number])
        if search.best is None:
            return parent(item, "never_valid", cost)
        kept = self.ends[number][search.best - 1]
        if kept == len(item.steps):
            return parent(item, "no_shorter_prefix", cost)
        own = self.params.conclusion == "original" and item.trace.thinking is Thinking.CLOSED
        answer = item.trace.answer_text if own else self.right[number, search.best]
        return keep(item, range(kept), answer, cost=cost)
