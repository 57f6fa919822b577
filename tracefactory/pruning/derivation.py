"""The derivation of a pruned row: the kept steps, the characters that were cut, and other values of the parent.

The row and its derivation restore the parent's text exactly, so pruning can be undone, displayed and used for training
without reading the parent's stage.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

from tracefactory.core.errors import RunError
from tracefactory.core.rows import Frozen, Parent, ParentRole, Thinking, Trace, Verdict
from tracefactory.pruning.base import PruneItem, PruneResult
from tracefactory.text.steps import Granularity, StepKind
from tracefactory.text.steps.label import MODEL_RULE

Unit = Literal["student_tokens", "estimated_tokens", "characters"]


@dataclass(frozen=True)
class LengthCounter:
    """Counts the length of texts in the student's tokens, in tokens estimated from the parent's, or in characters."""

    unit: Unit
    count: Callable[[str], int]

    @classmethod
    def of(cls, trace: Trace, tokenizer: Callable[[str], int] | None) -> LengthCounter:
        """Return the counter for a trace and its pruned forms.

        Without the student's tokenizer, tokens are estimated from characters and the server's token count of the
        parent's completion; without that count, lengths are in characters.
        """
        if tokenizer is not None:
            return cls(unit="student_tokens", count=tokenizer)
        characters = len(trace.text)
        if trace.completion_tokens and characters:
            density = trace.completion_tokens / characters
            return cls(unit="estimated_tokens", count=lambda text: round(len(text) * density))
        return cls(unit="characters", count=len)


class Lengths(Frozen):
    """Lengths of the two training texts (`Trace.text`), in `unit`."""

    unit: Unit
    parent: int
    pruned: int


class Edit(Frozen):
    """How to restore the parent from the pruned row.

    `kept` are [first, stop) ranges of the parent's steps. Each of `cuts` is a position in the pruned reasoning and the
    parent's characters that were cut there; the last `added` characters are not from the parent. The other fields are
    values of the parent; `answer_text` is None when the pruned row has the same.
    """

    kept: tuple[tuple[int, int], ...]
    cuts: tuple[tuple[int, str], ...]
    added: int
    parents: tuple[Parent, ...]
    answer_text: str | None
    thinking: Thinking
    finish_reason: str
    completion_tokens: int
    verdict: Verdict | None
    lengths: Lengths


class Derivation(Frozen):
    """The content of `Trace.derivation`, which a prune stage writes for each of its rows.

    A pruned row has an `edit`. A row that keeps the parent trace has `fallback`, a stable snake_case reason, and
    `detail`. `steps` is the number of the parent's steps; `kinds` are their kinds if a model classified them; `calls`,
    `samples` and `unsure` are those of `PruneResult`. `before` is the earlier derivation of a row that had already been
    pruned.
    """

    pruner: str
    granularity: Granularity
    steps: int
    kinds: tuple[StepKind, ...] = ()
    calls: int = 0
    samples: int = 0
    unsure: int = 0
    edit: Edit | None = None
    fallback: str | None = None
    detail: str | None = None
    before: Derivation | None = None


def read_derivation(trace: Trace) -> Derivation | None:
    """Return the derivation of a row, None when no prune stage wrote one."""
    return None if trace.derivation == "{}" else Derivation.model_validate_json(trace.derivation)


def edited(trace: Trace) -> Derivation | None:
    """Return the derivation of a row's text: its own, or an earlier one if its own prune stage kept the parent."""
    derivation = read_derivation(trace)
    while derivation is not None and derivation.edit is None:
        derivation = derivation.before
    return derivation


def derive(
    item: PruneItem, result: PruneResult, *, pruner: str, granularity: Granularity, counter: LengthCounter
) -> Derivation:
    """Return the derivation for a checked result.

    Args:
        item: the parent trace in steps.
        result: the result.
        pruner: the name of the pruner.
        granularity: the size of the steps.
        counter: counts the lengths of the texts.
    """
    edit = None if result.reason is not None else _edit(item, result, counter)
    return Derivation(
        pruner=pruner,
        granularity=granularity,
        steps=len(item.steps),
        kinds=tuple(step.kind for step in item.steps) if any(step.rule == MODEL_RULE for step in item.steps) else (),
        calls=result.calls,
        samples=result.samples,
        unsure=result.unsure,
        edit=edit,
        fallback=result.reason,
        detail=result.detail,
        before=read_derivation(item.trace),
    )


def restored(trace: Trace) -> tuple[PruneItem, PruneResult] | None:
    """Return the parent of a pruned row in steps, and the result that gave the row; None for a row without an edit.

    Raises:
        RunError: when the segmentation into steps has changed since the row was pruned.
    """
    derivation = edited(trace)
    if derivation is None or derivation.edit is None:
        return None
    edit, before = derivation.edit, derivation.before
    parent = trace.model_copy(
        update={
            "id": trace.parent(ParentRole.PRUNED),
            "parents": edit.parents,
            "reasoning": _parent_reasoning(trace.reasoning, edit),
            "answer_text": trace.answer_text if edit.answer_text is None else edit.answer_text,
            "thinking": edit.thinking,
            "finish_reason": edit.finish_reason,
            "completion_tokens": edit.completion_tokens,
            "verdict": edit.verdict,
            "derivation": "{}" if before is None else before.model_dump_json(),
        }
    )
    item = PruneItem.of(parent, derivation.granularity)
    if len(item.steps) != derivation.steps:
        raise RunError(f"{trace.id} was pruned with other rules for steps; run its prune stage again")
    if derivation.kinds:
        typed = zip(item.steps, derivation.kinds, strict=True)
        steps = tuple(step.model_copy(update={"kind": kind, "rule": MODEL_RULE}) for step, kind in typed)
        item = item.model_copy(update={"steps": steps})
    result = PruneResult(
        id=item.trace.id,
        kept=tuple(index for first, stop in edit.kept for index in range(first, stop)),
        reasoning=trace.reasoning,
        answer_text=trace.answer_text,
        added=trace.reasoning[len(trace.reasoning) - edit.added :],
        calls=derivation.calls,
        samples=derivation.samples,
        unsure=derivation.unsure,
    )
    return item, result


def _edit(item: PruneItem, result: PruneResult, counter: LengthCounter) -> Edit:
    trace = item.trace
    verdict = trace.verdict
    pruned = trace.model_copy(update={"reasoning": result.reasoning, "answer_text": result.answer_text})
    return Edit(
        kept=tuple(_ranges(result.kept)),
        cuts=tuple(_cuts(item, result)),
        added=len(result.added),
        parents=trace.parents,
        answer_text=None if result.answer_text == trace.answer_text else trace.answer_text,
        thinking=trace.thinking,
        finish_reason=trace.finish_reason,
        completion_tokens=trace.completion_tokens,
        # Wall time is not part of the row.
        verdict=None if verdict is None else verdict.model_copy(update={"seconds": 0.0}),
        lengths=Lengths(unit=counter.unit, parent=counter.count(trace.text), pruned=counter.count(pruned.text)),
    )


def _ranges(indices: Sequence[int]) -> Iterator[tuple[int, int]]:
    for _, run in groupby(enumerate(indices), lambda pair: pair[1] - pair[0]):
        found = [index for _, index in run]
        yield found[0], found[-1] + 1


def _cuts(item: PruneItem, result: PruneResult) -> Iterator[tuple[int, str]]:
    """Yield the cuts: whole steps, and the white space that was stripped at the end."""
    kept, length = set(result.kept), len(result.reasoning) - len(result.added)
    position = 0
    for stays, run in groupby(item.steps, lambda step: step.index in kept):
        text = item.join(step.index for step in run)
        if not stays:
            yield position, text
            continue
        position += len(text)
        if position > length:
            yield length, text[len(text) - (position - length) :]
            position = length


def _parent_reasoning(reasoning: str, edit: Edit) -> str:
    kept = reasoning[: len(reasoning) - edit.added]
    pieces, done = [], 0
    for position, text in edit.cuts:
        pieces += [kept[done:position], text]
        done = position
    return "".join([*pieces, kept[done:]])
