"""Keep the shortest prefix found from which the student gives the correct answer.

Source: Efficient Long CoT Reasoning in Small Language Models (arXiv 2505.18440): binary cutting with backtracking, with
the student that will be trained. The paper assumes that the whole trace is valid; here the whole trace is tested if no
shorter prefix passed. Unlike in the paper, prefixes that end with a doubt, a question or an announcement ("Wait, ..."),
or before the result of a calculation, are not candidates by default: with a conclusion directly after them, they teach
the student to doubt, or to break off, and then to answer regardless. `stops: any` is the paper's search.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from tracefactory.core.keys import Later
from tracefactory.core.rows import Thinking
from tracefactory.pruning.answers import golds_of
from tracefactory.pruning.base import (
    CONTEXT_LENGTH,
    PRUNERS,
    Asks,
    Cost,
    PruneItem,
    Pruner,
    PruneResult,
    Stops,
    Tools,
    keep,
    parent,
)
from tracefactory.pruning.conclusion import Sampling, Text, vote
from tracefactory.pruning.evaluated import unevaluated_end
from tracefactory.pruning.search import Search, Test, max_calls, shortest_prefixes
from tracefactory.text.steps.ending import leaves_open


@PRUNERS.register("binary_cut")
class BinaryCut(Sampling, Pruner):
    """Keep the shortest prefix found from which the student gives the correct answer.

    A truncated answer does not count, because its last number can be correct by chance.
    """

    version: ClassVar[str] = "4"
    changes: ClassVar[Mapping[str, str]] = {
        "4": "a prefix does not end before the result of a calculation (`stops: any` allows it)"
    }
    needs: ClassVar[frozenset[str]] = frozenset({"verify", "student"})
    concludes: ClassVar[bool] = True

    conclusion: Literal["student", "original"] = Field(
        default="student",
        description="The answer text of the pruned trace: the student's first correct answer, or the original answer "
        "text; a trace with unclosed thinking always gets the student's.",
    )

    stops: Annotated[Stops, Later()] = Field(
        default="closed",
        description="Where a prefix may end: not after a doubt, a question, an announcement or a calculation without "
        "its result (`closed`), or after every step (`any`), as in the paper.",
    )

    async def prune(self, items: Sequence[PruneItem], tools: Tools) -> list[PruneResult]:
        """Search all traces in parallel; each round sends one batch of requests to the student."""
        run = _Run(self, [item for item in items if item.steps], tools)
        searches = await shortest_prefixes([len(ends) for ends in run.ends], run.ask)
        results = [run.result(number, search) for number, search in enumerate(searches)]
        found = {result.id: result for result in results}
        return [found.get(item.trace.id) or parent(item, "no_reasoning") for item in items]

    def asks_at_most(self, item: PruneItem) -> Asks:
        """Return the maximum number of tests of the search, times the samples."""
        return Asks(answers=max_calls(len(self.ends(item))) * self.samples if item.steps else 0)

    def ends(self, item: PruneItem) -> list[int]:
        """Return the numbers of steps of the candidate prefixes. The whole reasoning is always a candidate."""
        count, golds = len(item.steps), golds_of(item.trace.problem)
        stops = (
            end
            for end in range(1, count)
            if self.stops == "any"
            or not (leaves_open(item.step(end - 1)) or unevaluated_end(item.step(end - 1), golds))
        )
        return [*stops, count]


class _Run:
    """The state of one batch: the correct answer texts by (trace, prefix), and errors; prefixes count from 1."""

    def __init__(self, params: BinaryCut, items: list[PruneItem], tools: Tools) -> None:
        self.params, self.items, self.tools = params, items, tools
        self.ends = [params.ends(item) for item in items]
        self.student = tools.require_student("binary_cut")
        self.right: dict[tuple[int, int], str] = {}
        self.unsure: defaultdict[int, int] = defaultdict(int)
        self.errors: dict[int, str] = {}

    async def ask(self, asking: Sequence[tuple[int, int]]) -> list[Test]:
        """Test one prefix of each trace."""
        texts = []
        for number, count in asking:
            item = self.items[number]
            prefix = item.prefix(self.ends[number][count - 1])
            texts.append(Text(id=item.trace.id, problem=item.trace.problem, reasoning=prefix))
        outcomes: list[Test] = []
        for owner, votes in zip(asking, await vote(texts, self.params, self.student, self.tools.verify), strict=True):
            self.unsure[owner[0]] += votes.unsure
            if votes.answer is not None and votes.correct >= self.params.valid:
                self.right[owner] = votes.answer
                outcomes.append(Test.PASSED)
            elif votes.error == CONTEXT_LENGTH:
                outcomes.append(Test.TOO_LONG)
            elif votes.error:
                self.errors[owner[0]] = votes.error
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
        return keep(item, range(kept), answer, cost=cost, stops=self.params.stops)
