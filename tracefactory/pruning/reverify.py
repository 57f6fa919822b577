"""Check the results of all pruners; the parent is kept when a check fails.

A pruned trace must be coherent, use nothing that was cut, end in a correct answer, and, where a student is given, lead
that student to the answer (`tracefactory.pruning.conclusion`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from tracefactory.core.rows import Frozen, Outcome, Verdict
from tracefactory.pruning.base import Cost, PruneItem, PruneResult, Student, Verify, parent
from tracefactory.pruning.conclusion import Check, Evidence, conclude
from tracefactory.pruning.dangling import QUOTE, dangling
from tracefactory.pruning.undefined import undefined
from tracefactory.text.steps import StepKind
from tracefactory.text.steps.ending import leaves_open

_TAGS = re.compile(r"</?think>", re.IGNORECASE)
_REASONS = {
    Outcome.INCORRECT: "answer_lost",
    Outcome.UNVERIFIABLE: "answer_unverifiable",
    Outcome.VERIFIER_ERROR: "verifier_error",
}


class Checked(Frozen):
    """A checked result with the verdict on its answer text, or the parent trace, which keeps its own verdict.

    `evidence` is what the student concluded, also where the parent is kept for it; None where no student was asked.
    """

    result: PruneResult
    verdict: Verdict | None = None
    evidence: Evidence | None = None


async def reverify(
    items: Sequence[PruneItem],
    results: Sequence[PruneResult],
    verify: Verify,
    check: Check | None = None,
    student: Student | None = None,
) -> list[Checked]:
    """Check results against their parents, verify the answer texts of those that pass, and have the student conclude.

    The parent trace is kept when the pruned thinking is empty, is not closed or contains thinking tags; when it has a
    doubt or an announcement whose resolution was cut; when it refers to text, a name or a value that was cut; when its
    answer text is not verified as correct, including failures of the verifier; and when the student does not conclude
    from it.

    Args:
        items: the parents in steps.
        results: one result for each parent.
        verify: verifies answer texts.
        check: how the student concludes.
        student: the student that concludes; without it, nothing is known of the reasoning.
    """
    coherent = [structure(item, result) for item, result in zip(items, results, strict=True)]
    passed = [(item, result) for item, result in zip(items, coherent, strict=True) if result.reason is None]
    pairs = [(item.trace.problem, result.answer_text) for item, result in passed]
    verdicts = dict(zip((result.id for _, result in passed), await verify(pairs) if pairs else [], strict=True))
    checked = [_judge(item, result, verdicts.get(result.id)) for item, result in zip(items, coherent, strict=True)]
    if check is None or student is None:
        return checked
    asked = [
        (item.trace, one.result.reasoning)
        for item, one in zip(items, checked, strict=True)
        if one.result.reason is None
    ]
    found = await conclude(asked, check, student, verify)
    evidence = {trace.id: one for (trace, _), one in zip(asked, found, strict=True)}
    return [
        one if item.trace.id not in evidence else _concluded(item, one, evidence[item.trace.id])
        for item, one in zip(items, checked, strict=True)
    ]


def structure(item: PruneItem, result: PruneResult) -> PruneResult:
    """Return the result if its text is coherent, else the parent trace with the reason."""
    if result.reason is not None:
        return result
    if not result.closed or not result.answer_text.strip():
        return _fall_back(item, result, "thinking_not_closed")
    if not result.reasoning.strip():
        return _fall_back(item, result, "empty_reasoning")
    tag = _TAGS.search(result.reasoning) or _TAGS.search(result.answer_text)
    if tag:
        return _fall_back(item, result, "thinking_tags_inside", tag.group())
    open_step = _left_open(item, result)
    if open_step is not None:
        return _fall_back(item, result, "left_open", " ".join(item.step(open_step).split())[-QUOTE:])
    if fault := dangling(item, result):
        return _fall_back(item, result, "dangling_reference", fault)
    fault = undefined(item, result)
    return _fall_back(item, result, "undefined_value", fault) if fault else result


def _left_open(item: PruneItem, result: PruneResult) -> int | None:
    """Return the first kept step that leaves something open that the next step, which was cut, resolves.

    Filler needs no resolution, but must not be the last step. Added text can follow any step. Where the kept text may
    stop at any step, its last step is not examined.
    """
    kept, stop = set(result.kept), max(result.kept, default=-1)
    for index in result.kept:
        ends = index == stop
        if index + 1 == len(item.steps) or index + 1 in kept or (ends and (result.added or result.stops == "any")):
            continue
        if (ends or item.steps[index].kind is not StepKind.FILLER) and leaves_open(item.step(index)):
            return index
    return None


def _judge(item: PruneItem, result: PruneResult, verdict: Verdict | None) -> Checked:
    if verdict is None or verdict.outcome is Outcome.CORRECT:
        return Checked(result=result, verdict=verdict)
    return Checked(result=_fall_back(item, result, _REASONS[verdict.outcome], verdict.extracted or verdict.detail))


def _concluded(item: PruneItem, checked: Checked, evidence: Evidence) -> Checked:
    if evidence.reason is None:
        return checked.model_copy(update={"evidence": evidence})
    votes = evidence.votes
    detail = None if votes is None else votes.error or f"{votes.correct} of {votes.samples} answers are correct"
    return Checked(result=_fall_back(item, checked.result, evidence.reason, detail), evidence=evidence)


def _fall_back(item: PruneItem, result: PruneResult, reason: str, detail: str | None = None) -> PruneResult:
    """Return the result that keeps the parent trace, with the costs of the rejected result."""
    cost = Cost(calls=result.calls, samples=result.samples, unsure=result.unsure)
    return parent(item, reason, cost, detail)
