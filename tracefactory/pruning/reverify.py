"""Check the results of all pruners; the parent is kept when a check fails.

A pruned trace must be coherent, use nothing that was cut, end in a correct answer, state no other answer itself, and,
where a student is given, lead that student to the answer (`tracefactory.pruning.conclusion`).

The answer text of most pruned traces is the parent's, so its verdict says nothing of the pruned reasoning. Therefore
the answer is read again from the reasoning. A pruner that cuts because the reasoning states the answer (`stated`:
`after_answer`, `verification_steps`) must leave a reasoning whose last statement the verifier accepts. The others leave
a reasoning that may state nothing: the beginnings of `binary_cut` and `truncate` end before the answer, which the
student concludes, and `low_information` or `rewrite` may drop the statement. They are refused only where the
reasoning states another answer last, and takes nothing of it back.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

from tracefactory.core.rows import Frozen, Outcome, Problem, Verdict
from tracefactory.pruning.answers import golds_of, last_statement, stands_written, statements
from tracefactory.pruning.base import Cost, PruneItem, PruneResult, Student, Verify, correct, parent
from tracefactory.pruning.conclusion import Check, Evidence, conclude
from tracefactory.pruning.dangling import QUOTE, dangling
from tracefactory.pruning.evaluated import is_literal, unevaluated_end
from tracefactory.pruning.undefined import undefined
from tracefactory.text.steps import StepKind
from tracefactory.text.steps.ending import leaves_open

States = Literal["right", "none", "wrong", "undecided"]
"""What a reasoning states last: the answer, none, another one, or one that the verifier could not decide on."""

_TAGS = re.compile(r"</?think>", re.IGNORECASE)
_REASONS = {
    Outcome.INCORRECT: "answer_lost",
    Outcome.UNVERIFIABLE: "answer_unverifiable",
    Outcome.VERIFIER_ERROR: "verifier_error",
}


class Checked(Frozen):
    """A checked result with the verdict on its answer text, or the parent trace, which keeps its own verdict.

    `states` is what the pruned reasoning states itself, also where the parent is kept for it; None where it was not
    read. `evidence` is what the student concluded, also where the parent is kept for it; None where no student was
    asked.
    """

    result: PruneResult
    verdict: Verdict | None = None
    states: States | None = None
    evidence: Evidence | None = None


async def reverify(
    items: Sequence[PruneItem],
    results: Sequence[PruneResult],
    verify: Verify,
    check: Check | None = None,
    student: Student | None = None,
) -> list[Checked]:
    """Check results against their parents, verify the answers of those that pass, and have the student conclude.

    The parent trace is kept when the pruned thinking is empty, is not closed or contains thinking tags; when it has a
    doubt or an announcement whose resolution was cut, or stops before a result; when it refers to text, a name or a
    value that was cut; when its answer text, or the answer that its reasoning states, is not verified as correct,
    including failures of the verifier; and when the student does not conclude from it.

    Args:
        items: the parents in steps.
        results: one result for each parent.
        verify: verifies answer texts.
        check: how the student concludes.
        student: the student that concludes; without it, nothing is known of the reasoning.
    """
    coherent = [structure(item, result) for item, result in zip(items, results, strict=True)]
    checked = await _verified(items, coherent, verify)
    if check is None or student is None:
        return checked
    asked = [
        (item.trace, one.result.reasoning, one.result.stated or "explicit")
        for item, one in zip(items, checked, strict=True)
        if one.result.reason is None
    ]
    found = await conclude(asked, check, student, verify)
    evidence = {trace.id: one for (trace, _, _), one in zip(asked, found, strict=True)}
    return [
        one if item.trace.id not in evidence else _concluded(item, one, evidence[item.trace.id])
        for item, one in zip(items, checked, strict=True)
    ]


async def _verified(items: Sequence[PruneItem], results: Sequence[PruneResult], verify: Verify) -> list[Checked]:
    """Verify the answer texts, and the answers that the reasoning states, in one batch."""
    asked: list[tuple[Problem, str]] = []
    stated: list[str | None] = []
    for item, result in zip(items, results, strict=True):
        stated.append(None if result.reason else _stated(result))
        if result.reason is None:
            texts = (result.answer_text, stated[-1])
            asked += [(item.trace.problem, text) for text in texts if text is not None]
    found = iter(await verify(asked) if asked else [])
    checked = []
    for item, result, statement in zip(items, results, stated, strict=True):
        if result.reason is not None:
            checked.append(Checked(result=result))
            continue
        verdict = next(found)
        checked.append(_judge(item, result, verdict, statement, None if statement is None else next(found)))
    return checked


def _stated(result: PruneResult) -> str | None:
    """Return the last statement of the pruned reasoning that nothing takes back, None without one."""
    if result.stated is not None:
        return last_statement(result.reasoning, result.stated)
    return last_statement(result.reasoning, "explicit", retracted=False)


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
    if _is_cut(item, result) and (end := unevaluated_end(result.reasoning, golds_of(item.trace.problem))):
        return _fall_back(item, result, "ends_before_result", end)
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


def _is_cut(item: PruneItem, result: PruneResult) -> bool:
    """Return whether the pruned reasoning ends where the parent's does not, and may not end just anywhere."""
    return not result.added and result.stops == "closed" and max(result.kept, default=-1) + 1 < len(item.steps)


def _judge(
    item: PruneItem, result: PruneResult, verdict: Verdict, statement: str | None, stated: Verdict | None
) -> Checked:
    """Return the result where its answer text and what its reasoning states are correct, else the parent."""
    if not correct(verdict):
        return Checked(result=_fall_back(item, result, _REASONS[verdict.outcome], verdict.extracted or verdict.detail))
    states = _what_it_states(item, statement, stated)
    reason = None
    if result.stated is not None and states != "right":
        failed = stated is not None and stated.outcome is Outcome.VERIFIER_ERROR
        reason = "verifier_error" if failed else "reasoning_states_no_answer"
    if states == "wrong":
        reason = "reasoning_states_another_answer"
    if reason is None and result.stated_last and not statements(_end(item, result), result.stated or "explicit"):
        reason = "reasoning_goes_on_after_answer"
    if reason is not None:
        detail = None if statement is None else " ".join(statement.split())[-QUOTE:]
        return Checked(result=_fall_back(item, result, reason, detail), states=states)
    return Checked(result=result, verdict=verdict, states=states)


def _what_it_states(item: PruneItem, statement: str | None, verdict: Verdict | None) -> States:
    if statement is None or verdict is None:
        return "none"
    if correct(verdict):
        return "right" if stands_written(item.trace.problem, statement, verdict) else "undecided"
    # What is no complete value ("the answer is of the form m + n") is not another answer.
    other = verdict.outcome is Outcome.INCORRECT and is_literal(verdict.extracted or "")
    return "wrong" if other else "undecided"


def _end(item: PruneItem, result: PruneResult) -> str:
    """Return the last step of a pruned reasoning; of text that is not from the parent, the last line."""
    if result.added.strip():
        return result.added.rstrip().rsplit("\n", 1)[-1]
    return item.step(result.kept[-1])


def _concluded(item: PruneItem, checked: Checked, evidence: Evidence) -> Checked:
    if evidence.reason is None:
        return checked.model_copy(update={"evidence": evidence})
    votes = evidence.votes
    detail = None if votes is None else votes.error or f"{votes.correct} of {votes.samples} answers are correct"
    rejected = _fall_back(item, checked.result, evidence.reason, detail)
    return Checked(result=rejected, states=checked.states, evidence=evidence)


def _fall_back(item: PruneItem, result: PruneResult, reason: str, detail: str | None = None) -> PruneResult:
    """Return the result that keeps the parent trace, with the costs of the rejected result."""
    cost = Cost(calls=result.calls, samples=result.samples, unsure=result.unsure)
    return parent(item, reason, cost, detail, result.measures)
