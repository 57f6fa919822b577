"""Drop the steps that tell the student least, whole, within a budget.

Sources: step entropy (arXiv 2508.03346), which drops the steps whose tokens have the least entropy, and ASAP (arXiv
2508.05988), which scores a paragraph by the surprisal of its first token. The scores are stored measures of the
student, so no model is asked. Unlike there, a step that leaves something open (a doubt, a question, an announcement)
is one with the step that settles it: without its answer, a question would be all that is left of both.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import isnan
from typing import ClassVar, Literal

from pydantic import Field

from tracefactory.core.errors import UserError
from tracefactory.core.rows import Thinking
from tracefactory.pruning.base import PRUNERS, PruneItem, Pruner, PruneResult, Tools, keep, parent
from tracefactory.text.steps import StepKind
from tracefactory.text.steps.ending import leaves_open


@PRUNERS.register("low_information")
class LowInformation(Pruner):
    """Drop the steps of the lowest score first, the later of two equal ones, within a budget of tokens.

    The first step, which sets out the problem, and steps without a score stay. What no longer fits the budget is passed
    over for something smaller.
    """

    version: ClassVar[str] = "2"
    needs: ClassVar[frozenset[str]] = frozenset({"scores"})

    drop: float = Field(default=0.2, gt=0, lt=1, description="Largest share of a trace's tokens that is dropped.")
    score: Literal["surprisal", "first_surprisal", "entropy"] = Field(
        default="surprisal",
        description="What steps are scored by; those that go together score as one: by tokens (surprisal), by the "
        "first of them (first_surprisal) or in sum (entropy).",
    )
    protect: tuple[StepKind, ...] = Field(
        default=(StepKind.CONCLUSION,), description="The kinds of steps that stay whatever they score."
    )

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
        dropped: set[int] = set()
        for _, _, group in sorted(self._free(item, tokens, values)):
            size = sum(tokens[index] for index in group)
            if size <= budget:
                budget -= size
                dropped.update(group)
        if not dropped:
            return parent(item, "nothing_to_drop")
        kept = [step.index for step in item.steps if step.index not in dropped]
        return keep(item, kept, item.trace.answer_text, closed=item.trace.thinking is not Thinking.OPEN)

    def _free(
        self, item: PruneItem, tokens: Sequence[int], values: Sequence[float]
    ) -> Iterator[tuple[float, int, list[int]]]:
        """Yield what may be dropped: (score, minus the first step's number, the steps that go together)."""
        for group in together(item):
            stays = group[0] == 0 or any(item.steps[index].kind in self.protect for index in group)
            if stays or any(isnan(values[index]) for index in group):
                continue
            score = values[group[0]]
            if self.score != "first_surprisal":
                weights = [tokens[index] if self.score == "surprisal" else 1 for index in group]
                score = sum(weight * values[index] for weight, index in zip(weights, group, strict=True))
                score = score / sum(weights) if self.score == "surprisal" else score
            yield score, -group[0], group


def together(item: PruneItem) -> Iterator[list[int]]:
    """Yield the steps of an item, those that leave something open with the step after them; idle talk stands alone."""
    group: list[int] = []
    for step in item.steps:
        group.append(step.index)
        if step.kind is StepKind.FILLER or not leaves_open(item.step(step.index)):
            yield group
            group = []
    if group:
        yield group
