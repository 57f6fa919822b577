"""What pruning did to one trace, in numbers."""

from __future__ import annotations

from tracefactory.pruners.base import PruneItem, PruneResult
from tracefactory.pruners.derivation import Ruler, Unit

_SAVED: dict[Unit, str] = {
    "student_tokens": "prune_tokens_saved",
    "estimated_tokens": "prune_tokens_saved_estimated",
    "characters": "prune_characters_saved",
}


def measures(item: PruneItem, result: PruneResult, ruler: Ruler) -> dict[str, float]:
    """Return the measures of one result.

    `prune_kept_share` is of the characters of the parent's reasoning (above 1 for one that grew);
    `prune_tokens_saved` counts reasoning alone, in the student's tokens, and is called `..._estimated`, or
    `prune_characters_saved`, where these are not to be had; `prune_calls` and `prune_samples` are the model's.
    """
    before, after = item.trace.reasoning, result.reasoning
    return {
        "prune_kept_share": len(after) / len(before) if before else 1.0,
        "prune_kept_steps": float(len(result.kept)),
        _SAVED[ruler.unit]: float(ruler.count(before) - ruler.count(after)),
        "prune_calls": float(result.calls),
        "prune_samples": float(result.samples),
    }
