"""Cut the steps after the first step that states the verified answer, also in traces with unclosed thinking.

Source: the earliest correct node of STOP (arXiv 2605.13165) and the post-answer steps that Prune-on-Logic
(arXiv 2505.14582) finds safe to remove; here they are found by rules, without a model. The value has to stand written:
a trace is not cut at "so we need 3*4+6".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from pydantic import Field

from tracefactory.core.rows import Thinking
from tracefactory.pruning.answers import EVIDENCE, Stated, ending, golds_of, stated_answers
from tracefactory.pruning.base import PRUNERS, PruneItem, Pruner, PruneResult, Stating, Tools, keep, parent
from tracefactory.pruning.evaluated import unevaluated_end


@PRUNERS.register("after_answer")
class AfterAnswer(Pruner):
    """Cut the steps after the first step that states the verified answer."""

    version: ClassVar[str] = "2"
    changes: ClassVar[Mapping[str, str]] = {
        "2": "the answer has to stand written: nothing is cut after an expression that has yet to be calculated"
    }
    needs: ClassVar[frozenset[str]] = frozenset({"verify"})

    evidence: Stating = Field(default="explicit", description=EVIDENCE)

    async def prune(self, items: Sequence[PruneItem], tools: Tools) -> list[PruneResult]:
        """Find the answers of all traces with one call of the verifier, then cut."""
        found = await stated_answers(items, tools.verify, self.evidence)
        return [self._cut(item, _first(item, stated)) for item, stated in zip(items, found, strict=True)]

    def _cut(self, item: PruneItem, stated: Stated | None) -> PruneResult:
        if not item.steps:
            return parent(item, "no_reasoning")
        if stated is None:
            return parent(item, "answer_not_stated")
        if stated.step == len(item.steps) - 1 and item.trace.thinking is Thinking.CLOSED:
            return parent(item, "nothing_after_answer")
        kept = range(stated.step + 1)
        return keep(item, kept, ending(item, stated), stated=self.evidence, stated_last=True)


def _first(item: PruneItem, stated: Sequence[Stated]) -> Stated | None:
    """Return the first statement after which the trace can end: its step does not begin another calculation."""
    golds = golds_of(item.trace.problem)
    return next((one for one in stated if unevaluated_end(item.step(one.step), golds) is None), None)
