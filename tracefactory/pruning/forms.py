"""The two forms a pruned trace is trained in: its own text, or the parent's text with the cut steps out of the loss.

Masking keeps the context a kept step was written in; segment-level selective fine-tuning reports that it beats
training on the shortened text. The pruned text is `Trace.text` of the pruned trace.
"""

from __future__ import annotations

from collections.abc import Sequence

from tracefactory.core.rows import Frozen
from tracefactory.pruning.base import PruneItem, PruneResult


class Masked(Frozen):
    """A training text and the [start, end) character ranges of it that carry no loss, in order and disjoint."""

    text: str
    spans: tuple[tuple[int, int], ...]


def masked(item: PruneItem, result: PruneResult) -> Masked:
    """Return the parent's full reasoning with the answer text of the result, and the spans of the cut steps.

    Raises:
        ValueError: for a result with text of its own, which is no selection of the parent's.
    """
    if result.added:
        raise ValueError(f"trace {result.id}: added text is not in the parent, so there is nothing to mask it in")
    text = item.trace.model_copy(update={"answer_text": result.answer_text}).text
    offset = text.index(item.trace.reasoning)
    kept = set(result.kept)
    spans: list[tuple[int, int]] = []
    for step in item.steps:
        if step.index in kept:
            continue
        start, end = offset + step.start, offset + step.end
        if spans and spans[-1][1] == start:
            start = spans.pop()[0]
        spans.append((start, end))
    return Masked(text=text, spans=tuple(spans))


def loss_mask(offsets: Sequence[tuple[int, int]], spans: Sequence[tuple[int, int]]) -> list[int]:
    """Return 1 for tokens that carry loss and 0 for tokens that start in a masked span.

    `offsets` are a fast tokenizer's `offset_mapping` of the masked text, in order.
    """
    mask, number = [], 0
    for start, _ in offsets:
        while number < len(spans) and spans[number][1] <= start:
            number += 1
        mask.append(0 if number < len(spans) and spans[number][0] <= start else 1)
    return mask
