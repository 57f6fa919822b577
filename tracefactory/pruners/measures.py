"""What pruning did to one trace, in numbers."""

from __future__ import annotations

from collections.abc import Callable

from tracefactory.pruners.base import PruneItem, PruneResult


def measures(item: PruneItem, result: PruneResult, count: Callable[[str], int]) -> dict[str, float]:
    """Return the measures of one result; `count` gives the length of a text in the student's tokens.

    `prune_kept_share` is of the parent's reasoning, in tokens (above 1 for one that grew); `prune_tokens_saved` counts
    reasoning alone; `prune_calls` and `prune_samples` are the model's.
    """
    before, after = count(item.trace.reasoning), count(result.reasoning)
    return {
        "prune_kept_share": after / before if before else 1.0,
        "prune_kept_steps": float(len(result.kept)),
        "prune_tokens_saved": float(before - after),
        "prune_calls": float(result.calls),
        "prune_samples": float(result.samples),
    }
