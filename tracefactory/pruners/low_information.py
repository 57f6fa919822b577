"""Drop the steps that tell the student least, whole, within a budget.

Sources: step entropy (arXiv 2508.03346), which drops the steps whose tokens have the least entropy, and ASAP (arXiv
2508.05988), which scores a paragraph by the surprisal of its first token. The scores are stored measures of the
student, so no model is asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import isnan
from typing import ClassVar, Literal

from pydantic import Field

from tracefactory.errors import UserError
from tracefactory.pruners.base import PRUNERS, PruneItem, Pruner, PruneResult, Tools, keep, parent
from tracefactory.schema import Thinking
from tracefactory.steps import StepKind


@PRUNERS.register("low_information")
class LowInformation(Pruner):
    """Drop at most `drop` of a trace's tokens, the steps of the lowest `score` first, the later of two equal ones.

    `protect` names the kinds of steps that stay whatever they score; the first step, which sets out the problem, and
    steps without a score stay too. A step that no longer fits the budget is passed over for a smaller one.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"scores"})

    drop: float = Field(default=0.2, gt=0, lt=1)
    score: Literal["surprisal", "first_surprisal", "entropy"] = "surprisal"
    protect: tuple[StepKind, ...] = (StepKind.CONCLUSION,)

    async def prune(self, items: Sequence[PruneItem], tools: Tools) -> list[PruneResult]:
        """Choose per trace; nothing is asked."""
        return [self._choose(item) for item in items]

    def _choose(self, item: PruneItem) -> PruneResult:
        if not item.steps:
            return parent(item, "no_reasoning")
        if item.scores is None:
            return parent(item, "not_scored")
        tokens, values = item.scores.tokens, getattr(item.scores, self.score)
        if not len(tokens) == len(values) == len(item.steps):
            raise UserError(
                f"trace {item.trace.id}: scores of {len(tokens)} steps, but it has {len(item.steps)}: "
                "measure it again with the granularity it is pruned with"
            )
        budget = self.drop * sum(tokens)
        free = [
            step.index for step in item.steps[1:] if step.kind not in self.protect and not isnan(values[step.index])
        ]
        dropped: set[int] = set()
        for index in sorted(free, key=lambda index: (values[index], -index)):
            if tokens[index] <= budget:
                budget -= tokens[index]
                dropped.add(index)
        if not dropped:
            return parent(item, "nothing_to_drop")
        kept = [step.index for step in item.steps if step.index not in dropped]
        return keep(item, kept, item.trace.answer_text, closed=item.trace.thinking is not Thinking.OPEN)
