"""Rewrite the reasoning with a model to a target length, shorter or longer.

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
    """Rewrite the reasoning with a model, shorter or longer."""

    needs: ClassVar[frozenset[str]] = frozenset({"writer"})

    target: float = Field(
        default=0.5, gt=0, description="Target words, as a share of the parent's words; 2 doubles them."
    )
    reached: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="Minimum change of the length, as a share of the change to the target; otherwise the parent is "
        "kept. 0 accepts every rewrite whose length changes in the right direction, or not at all.",
    )

    async def prune(self, items: Sequence[PruneItem], tools: Tools) -> list[PruneResult]:
        """Rewrite all traces in one batch."""
        writer = tools.require_writer("rewrite")
        asked = [item for item in items if item.trace.reasoning.strip()]
        requests = [
            RewriteItem(
                id=item.trace.id,
                question=item.trace.problem.question,
                reasoning=item.trace.reasoning,
                answer_text=item.trace.answer_text,
                words=max(1, round(self.target * count_words(item.trace.reasoning))),
            )
            for item in asked
        ]
        replies = await writer.rewrite(requests) if requests else []
        found = {item.trace.id: self._result(item, reply) for item, reply in zip(asked, replies, strict=True)}
        return [found.get(item.trace.id) or parent(item, "no_reasoning") for item in items]

    def asks_at_most(self, item: PruneItem) -> Asks:
        """Return one completion for a trace with reasoning."""
        return Asks(answers=1 if item.trace.reasoning.strip() else 0)

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
