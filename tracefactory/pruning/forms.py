"""Training forms of a pruned trace: its own text, or the parent's text with the cut steps masked from the loss.

Masking preserves the context in which a kept step was written; segment-level selective fine-tuning reports better
results than with the shortened text. The pruned text is `Trace.text` of the pruned trace.
"""

from __future__ import annotations

from collections.abc import Sequence

from tracefactory.core.rows import Frozen
from tracefactory.pruning.base import PruneItem, PruneResult


class Masked(Frozen):
    """A training text and its [start, end) character ranges without loss, sorted and disjoint."""

    text: str
    spans: tuple[tuple[int, int], ...]


def masked(item: PruneItem, result: PruneResult) -> Masked:
    """Return the parent's reasoning with the answer text of the result, and the spans of the cut steps.

    Raises:
        ValueError: for a result with added text, which does not occur in the parent.
    """
    if result.added:
        raise ValueError(f"trace {result.id} has added text, which is not in the parent; there is nothing to mask")
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
    """Return 1 for tokens with loss and 0 for tokens that start in a masked span.

    `offsets` are a fast tokenizer's `offset_mapping` of the masked text, in order.
    """
    mask, number = [], 0
    for start, _ in offsets:
        while number < len(spans) and spans[number][1] <= start:
            number += 1
        mask.append(0 if number < len(spans) and spans[number][0] <= start else 1)
    return mask
