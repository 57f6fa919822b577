"""Keep the first share of the reasoning and let the student conclude: the control of every claim about pruning.

A pruner that selects steps with care has to be better than this. Source: the first half of the tokens keeps about 91%
of the effect of long traces (arXiv 2512.21002). The cut is after the last whole step within the share, wherever that
is, so the kept text may end with a doubt.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import ClassVar

from pydantic import Field

from tracefactory.pruning.base import PRUNERS, Asks, Cost, PruneItem, Pruner, PruneResult, Tools, keep, parent
from tracefactory.pruning.conclusion import Sampling, Text, vote


@PRUNERS.register("truncate")
class Truncate(Sampling, Pruner):
    """Keep the first share of the reasoning, and let the student conclude from it."""

    needs: ClassVar[frozenset[str]] = frozenset({"verify", "student"})
    concludes: ClassVar[bool] = True

    share: float = Field(
        default=0.5,
        gt=0,
        lt=1,
        description="Share of the reasoning to keep, in tokens of the model `student:`, without it in characters.",
    )

    async def prune(self, items: Sequence[PruneItem], tools: Tools) -> list[PruneResult]:
        """Cut all traces, then let the student conclude from what is left in one batch."""
        student = tools.require_student("truncate")
        counts = {item.trace.id: self._kept(item, tools.count) for item in items}
        texts = [
            Text(id=item.trace.id, problem=item.trace.problem, reasoning=item.prefix(counts[item.trace.id]))
            for item in items
            if len(item.steps) > 1
        ]
        votes = dict(zip((text.id for text in texts), await vote(texts, self, student, tools.verify), strict=True))
        results = []
        for item in items:
            found = votes.get(item.trace.id)
            if found is None:
                results.append(parent(item, "one_step" if item.steps else "no_reasoning"))
                continue
            cost = Cost(calls=1, samples=found.samples, unsure=found.unsure)
            if found.answer is not None and found.correct >= self.valid:
                results.append(keep(item, range(counts[item.trace.id]), found.answer, cost=cost, stops="any"))
            else:
                results.append(parent(item, "student_error" if found.error else "not_concluded", cost, found.error))
        return results

    def asks_at_most(self, item: PruneItem) -> Asks:
        """Return the samples of one conclusion."""
        return Asks(answers=self.samples if len(item.steps) > 1 else 0)

    def _kept(self, item: PruneItem, count: Callable[[str], int]) -> int:
        """Return the number of whole steps within the share, at least one and not all."""
        ends = list(accumulate(count(item.step(index)) for index in range(len(item.steps))))
        within = sum(end <= self.share * ends[-1] for end in ends) if ends else 0
        return max(1, within)
