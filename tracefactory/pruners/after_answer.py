"""Cut the steps after the first step that states the verified answer, also in traces with unclosed thinking.

Source: the earliest correct node of STOP (arXiv 2605.13165) and the post-answer steps that Prune-on-Logic
(arXiv 2505.14582) finds safe to remove; here they are found by rules, without a model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from pydantic import Field

from tracefactory.core.rows import Thinking
from tracefactory.pruning.answers import EVIDENCE, Evidence, Stated, ending, stated_answers
from tracefactory.pruning.base import PRUNERS, PruneItem, Pruner, PruneResult, Tools, keep, parent


@PRUNERS.register("after_answer")
class AfterAnswer(Pruner):
    """Cut the steps after the first step that states the verified answer."""

    needs: ClassVar[frozenset[str]] = frozenset({"verify"})

    evidence: Evidence = Field(default="explicit", description=EVIDENCE)

    async def prune(self, items: Sequence[PruneItem], tools: Tools) -> list[PruneResult]:
        """Find the answers of all traces with one call of the verifier, then cut."""
        found = await stated_answers(items, tools.verify, self.evidence)
        return [_cut(item, stated[0] if stated else None) for item, stated in zip(items, found, strict=True)]


def _cut(item: PruneItem, stated: Stated | None) -> PruneResult:
    if not item.steps:
        return parent(item, "no_reasoning")
    if stated is None:
        return parent(item, "answer_not_stated")
    if stated.step == len(item.steps) - 1 and item.trace.thinking is Thinking.CLOSED:
        return parent(item, "nothing_after_answer")
    return keep(item, range(stated.step + 1), ending(item, stated))
