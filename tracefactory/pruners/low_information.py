"""Drop the steps with the least information for the student, within a budget.

Sources: step entropy (arXiv 2508.03346), which drops the steps whose tokens have the least entropy, and ASAP (arXiv
2508.05988), which scores a paragraph by the surprisal of its first token. The scores are stored measures of the
student, so no request is sent. Unlike in the papers, a step that leaves something open (a doubt, a question, an
announcement) is kept or dropped together with the next step, so that no question stays without its answer.
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
    """Drop the steps with the lowest scores within a budget of tokens; of equal scores, the later step first.

    The first step, which states the problem, and steps without a score are kept. A step that exceeds the rest of the
    budget is kept, and smaller ones after it can still be dropped.
    """

    version: ClassVar[str] = "2"
    needs: ClassVar[frozenset[str]] = frozenset({"scores"})
    caution: ClassVar[str] = (
        "Steps are dropped because the student expects their words, which does not show that the answer can do without "
        "them"
    )

    drop: float = Field(default=0.2, gt=0, lt=1, description="Maximum share of a trace's tokens to drop.")
    score: Literal["surprisal", "first_surprisal", "entropy"] = Field(
        default="surprisal",
        description="The score of steps. Steps that belong together have one score: the mean by tokens (surprisal), "
        "that of the first step (first_surprisal), or the sum (entropy).",
    )
    protect: tuple[StepKind, ...] = Field(
        default=(StepKind.CONCLUSION,),
        description="The kinds of steps that are never dropped. A kind says what a step does, not whether the answer "
        "needs it.",
    )

    async def prune(self, items: Sequence[PruneItem], tools: Tools) -> list[PruneResult]:
        """Choose the steps of each trace; no request is sent."""
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
        """Yield the groups that may be dropped: (score, minus the index of the first step, indices of the steps)."""
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
    """Yield groups of steps: a step that leaves something open belongs to the next step; filler is a group alone."""
    group: list[int] = []
    for step in item.steps:
        group.append(step.index)
        if step.kind is StepKind.FILLER or not leaves_open(item.step(step.index)):
            yield group
            group = []
    if group:
        yield group
