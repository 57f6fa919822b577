"""Cut the steps after the first step that states the verified answer, also in traces with unclosed thinking.

Source: the earliest correct node of STOP (arXiv 2605.13165) and the post-answer steps that Prune-on-Logic
(arXiv 2505.14582) finds safe to remove; here they are found by rules, without a model. The value has to stand written:
a trace is not cut at "so we need 3*4+6". A step that only repeats a result in words stays with it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import ClassVar

from pydantic import Field

from tracefactory.core.rows import Thinking
from tracefactory.pruning.answers import EVIDENCE, Stated, ending, golds_of, stated_answers, statements
from tracefactory.pruning.base import PRUNERS, PruneItem, Pruner, PruneResult, Stating, Tools, keep, parent
from tracefactory.pruning.evaluated import unevaluated_end
from tracefactory.text.steps import StepKind
from tracefactory.text.steps.classify import states_answer

MAX_CONCLUSION = 200  # characters of a step that only repeats a result in words
_NUMBER = re.compile(r"\d+(?:\.\d+)?")
_CLOSES = re.compile(
    r"\W*(?:(?:so|therefore|thus|hence|consequently|finally|this|that|in total|altogether)\b|因此|所以|故|共)",
    re.IGNORECASE,
)
_TURNS = (StepKind.VERIFICATION, StepKind.REFLECTION, StepKind.RESTART)


@PRUNERS.register("after_answer")
class AfterAnswer(Pruner):
    """Cut the steps after the first step that states the verified answer."""

    version: ClassVar[str] = "2"
    changes: ClassVar[Mapping[str, str]] = {
        "2": "the answer has to stand written: nothing is cut after an expression that has yet to be calculated; with "
        "`evidence: result`, a step that only repeats the result in words is kept, too"
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
        last = stated.step + concludes(item, stated)
        if last == len(item.steps) - 1 and item.trace.thinking is Thinking.CLOSED:
            return parent(item, "nothing_after_answer")
        ends = last == stated.step
        return keep(item, range(last + 1), ending(item, stated), stated=self.evidence, stated_last=ends)


def concludes(item: PruneItem, stated: Stated) -> bool:
    """Return whether the step after a result only repeats it in words, so that it belongs to it.

    "That is 5 * 45 = 225." is followed by "So 225 battalions can be sent.": a short closing step with the value, and
    without a number that is not above it. What follows an announced answer is no such step.

    Args:
        item: the trace.
        stated: the step that states the verified answer, and the answer.
    """
    after = stated.step + 1
    if after == len(item.steps) or statements(item.step(stated.step), "explicit"):
        return False
    text, kind = item.step(after), item.steps[after].kind
    if len(text.strip()) > MAX_CONCLUSION or kind in _TURNS or not _CLOSES.match(text):
        return False
    above = f"{item.trace.problem.question} {item.prefix(after)}"
    repeats = set(_NUMBER.findall(stated.answer)) or {stated.answer}
    new = set(_NUMBER.findall(text)) - set(_NUMBER.findall(above))
    return not new and (states_answer(text) or all(one in _NUMBER.findall(text) for one in repeats))


def _first(item: PruneItem, stated: Sequence[Stated]) -> Stated | None:
    """Return the first statement after which the trace can end: its step does not begin another calculation."""
    golds = golds_of(item.trace.problem)
    return next((one for one in stated if unevaluated_end(item.step(one.step), golds) is None), None)
