"""Preference pairs from pruning: the pruned trace is chosen, the raw one rejected.

Source: Efficient Long CoT Reasoning (arXiv 2505.18440), whose preference stage prefers the pruned to the original
trace of the same question. Both answers are right there, so the pair teaches length alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tracefactory.pruners.base import PruneItem, correct
from tracefactory.pruners.reverify import Checked
from tracefactory.schema import Frozen, Verdict


class Pair(Frozen):
    """One preference: completions as a student would write them, both verified, lengths in the student's tokens."""

    id: str
    problem_id: str
    question: str
    chosen: str
    rejected: str
    chosen_verdict: Verdict
    rejected_verdict: Verdict
    chosen_length: int
    rejected_length: int


class Unpaired(Frozen):
    """A trace that gives no pair, and why."""

    id: str
    problem_id: str
    reason: str


def pair_up(
    items: Sequence[PruneItem], checked: Sequence[Checked], count: Callable[[str], int]
) -> list[Pair | Unpaired]:
    """Return a pair, or the reason for none, for every trace in order; `count` measures a text in tokens."""
    return [_pair(item, result, count) for item, result in zip(items, checked, strict=True)]


def _pair(item: PruneItem, checked: Checked, count: Callable[[str], int]) -> Pair | Unpaired:
    trace, result = item.trace, checked.result

    def unpaired(reason: str) -> Unpaired:
        return Unpaired(id=trace.id, problem_id=trace.problem_id, reason=reason)

    if result.reason is not None:
        return unpaired(result.reason)
    if checked.verdict is None or not correct(checked.verdict):
        return unpaired("chosen_not_verified")
    if trace.verdict is None or not correct(trace.verdict):
        return unpaired("rejected_not_verified")
    chosen = trace.model_copy(update={"reasoning": result.reasoning, "answer_text": result.answer_text}).text
    rejected = trace.text
    lengths = count(chosen), count(rejected)
    if lengths[0] >= lengths[1]:
        return unpaired("chosen_not_shorter")
    return Pair(
        id=trace.id,
        problem_id=trace.problem_id,
        question=trace.problem.question,
        chosen=chosen,
        rejected=rejected,
        chosen_verdict=checked.verdict,
        rejected_verdict=trace.verdict,
        chosen_length=lengths[0],
        rejected_length=lengths[1],
    )
