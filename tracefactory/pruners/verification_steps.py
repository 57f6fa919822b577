"""Drop the checks after the verified answer, but no step of its derivation.

Source: Prune-on-Logic (arXiv 2505.14582): removing verification steps shortens traces and helps, removing core
reasoning hurts. A check is the step that announces it and the steps that carry it out. A check that fails, or that
leads to a doubt, is part of the derivation and is kept, unless the trace then states the same answer again. A trace
with unclosed thinking is kept completely, because its last check has no end (use `after_answer` for those).

The kind of a step is a cue in its words. It says what the step does, not whether the answer needs it: as a sign that a
step is redundant, kinds have a precision of 0.24 and a recall of 0.05 (docs/pruning.md). So a check is dropped for its
place, after the verified answer, and not for its kind alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from pydantic import Field

from tracefactory.core.rows import Thinking
from tracefactory.pruning.answers import EVIDENCE, Stated, ending, stated_answers, statements
from tracefactory.pruning.base import PRUNERS, PruneItem, Pruner, PruneResult, Stating, Tools, keep, parent
from tracefactory.text.steps import StepKind
from tracefactory.text.steps.rules import FAILS

_BODY = (StepKind.VERIFICATION, StepKind.DERIVATION, StepKind.FILLER)
MAX_PRELUDE = 120  # characters of a doubt that only leads up to a check ("Wait, maybe I made a mistake.")
_DOUBTS = (StepKind.REFLECTION, StepKind.RESTART)


@PRUNERS.register("verification_steps")
class VerificationSteps(Pruner):
    """Drop the checks after the verified answer, but no step of its derivation."""

    version: ClassVar[str] = "3"
    changes: ClassVar[Mapping[str, str]] = {
        "3": "the answer has to stand written: no check counts as after it where it has yet to be calculated"
    }
    needs: ClassVar[frozenset[str]] = frozenset({"verify"})
    caution: ClassVar[str] = (
        "Checks are found by the words of a step and their place after the verified answer, which does not show that "
        "the answer can do without them"
    )

    evidence: Stating = Field(default="explicit", description=EVIDENCE)

    async def prune(self, items: Sequence[PruneItem], tools: Tools) -> list[PruneResult]:
        """Find the answers of all traces with one call of the verifier, then drop the checks after them."""
        found = await stated_answers(items, tools.verify, self.evidence)
        return [_drop(item, stated, self.evidence) for item, stated in zip(items, found, strict=True)]


def _drop(item: PruneItem, stated: Sequence[Stated], evidence: Stating) -> PruneResult:
    if not item.steps:
        return parent(item, "no_reasoning")
    if item.trace.thinking is Thinking.OPEN:
        return parent(item, "thinking_not_closed")
    if not stated:
        return parent(item, "answer_not_stated")
    checks = set(checks_after(item, [one.step for one in stated]))
    if not checks:
        return parent(item, "no_checks_after_answer")
    kept = [step.index for step in item.steps if step.index not in checks]
    return keep(item, kept, ending(item, stated[0]), stated=evidence)


def checks_after(item: PruneItem, stated: Sequence[int]) -> list[int]:
    """Return the steps of checks after the verified answer that found no mistake.

    A doubt after a check belongs to the check if the answer is stated again later, no other approach begins in between,
    and no mistake is found. A check that ends with another answer found a mistake. A short doubt directly before a
    check belongs to the check.

    Args:
        item: the trace.
        stated: the steps that state the verified answer, in order.
    """
    found: list[int] = []
    answered = stated[0]
    index = answered + 1
    while index < len(item.steps):
        if item.steps[index].kind is not StepKind.VERIFICATION:
            index += 1
            continue
        end = index + 1
        while end < len(item.steps) and item.steps[end].kind in _BODY:
            end += 1
        doubted = end < len(item.steps) and item.steps[end].kind in _DOUBTS
        again = next((step for step in stated if step > end), None)
        if doubted and again is not None and not any(one.kind is StepKind.RESTART for one in item.steps[end:again]):
            end, doubted = again, False
        other = end < len(item.steps) and end not in stated and statements(item.step(end), "explicit")
        if not (doubted or other) and not FAILS.search(item.join(range(index, end))):
            while index - 1 > answered and _leads_up(item, index - 1):
                index -= 1
            found.extend(range(index, end))
        index = end
    return found


def _leads_up(item: PruneItem, index: int) -> bool:
    step = item.steps[index]
    return step.kind is StepKind.REFLECTION and step.end - step.start <= MAX_PRELUDE
