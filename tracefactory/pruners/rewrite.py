"""Have a model write the reasoning anew at a target verbosity, shorter or longer.

Sources: the reasoning-verbosity rewriting of OmniThought / EasyDistill (arXiv 2505.10937) and the per-step rewriting
of DRP. No step of the parent is kept, so the whole text counts as added.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from pydantic import Field

from tracefactory.pruning.base import (
    PRUNERS,
    Asks,
    Conclusion,
    Cost,
    PruneItem,
    Pruner,
    PruneResult,
    RewriteItem,
    Tools,
    keep,
    parent,
)
from tracefactory.text.steps.words import count_words

_ASKED = Cost(calls=1, samples=1)


@PRUNERS.register("rewrite")
class Rewrite(Pruner):
    """Have a model write the reasoning anew, shorter or longer."""

    needs: ClassVar[frozenset[str]] = frozenset({"writer"})

    target: float = Field(default=0.5, gt=0, description="Words to aim at, as a share of the parent's; 2 extends.")
    reached: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="How much of the way from the parent's length to the target a rewrite must have gone, or the "
        "parent stands; 0 takes any rewrite that is not on the wrong side of the parent's length.",
    )

    async def prune(self, items: Sequence[PruneItem], tools: Tools) -> list[PruneResult]:
        """Ask for all rewrites at once."""
        writer = tools.require_writer("rewrite")
        asked = [item for item in items if item.trace.reasoning.strip()]
        replies = await writer.rewrite([self._question(item) for item in asked]) if asked else []
        found = {item.trace.id: self._result(item, reply) for item, reply in zip(asked, replies, strict=True)}
        return [found.get(item.trace.id) or parent(item, "no_reasoning") for item in items]

    def asks_at_most(self, item: PruneItem) -> Asks:
        """Return one rewrite."""
        return Asks(answers=1 if item.trace.reasoning.strip() else 0)

    def _question(self, item: PruneItem) -> RewriteItem:
        trace = item.trace
        return RewriteItem(
            id=trace.id,
            question=trace.problem.question,
            reasoning=trace.reasoning,
            answer_text=trace.answer_text,
            words=max(1, round(self.target * count_words(trace.reasoning))),
        )

    def _result(self, item: PruneItem, reply: Conclusion) -> PruneResult:
        if reply.error:
            return parent(item, "writer_error", _ASKED, reply.error)
        if not reply.reasoning.strip():
            return parent(item, "empty_rewrite", _ASKED)
        before = count_words(item.trace.reasoning)
        way = (count_words(reply.reasoning) - before) / before
        if self.target != 1 and way / (self.target - 1) < self.reached:
            return parent(item, "length_not_reached", _ASKED)
        answer = reply.text if reply.text.strip() else item.trace.answer_text
        return keep(item, (), answer, added=reply.reasoning, closed=reply.closed, cost=_ASKED)
