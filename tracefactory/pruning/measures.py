"""Measures of the effect of pruning on one trace."""

from __future__ import annotations

from tracefactory.core.columns import Column
from tracefactory.pruning.base import PruneItem, PruneResult
from tracefactory.pruning.derivation import LengthCounter, Unit

COLUMNS = (
    Column(name="prune_kept_share", description="Characters of the reasoning that are kept.", unit="share"),
    Column(name="prune_kept_steps", description="Steps of the reasoning that are kept.", unit="steps"),
    Column(
        name="prune_tokens_saved",
        description="Tokens that pruning saves over the whole training text, in the student's tokenizer.",
        unit="tokens",
        direction="higher",
    ),
    Column(
        name="prune_tokens_saved_estimated",
        description="The same, estimated from characters and the server's token count of the parent.",
        unit="tokens",
        direction="higher",
    ),
    Column(
        name="prune_characters_saved",
        description="Characters that pruning saves, where no token counts are known.",
        unit="characters",
        direction="higher",
    ),
    Column(name="prune_calls", description="Prefixes or texts that were sent to a model.", unit="calls"),
    Column(name="prune_samples", description="Completions that these calls sampled.", unit="completions"),
)
_SAVED: dict[Unit, str] = {
    "student_tokens": "prune_tokens_saved",
    "estimated_tokens": "prune_tokens_saved_estimated",
    "characters": "prune_characters_saved",
}


def measures(item: PruneItem, result: PruneResult, counter: LengthCounter) -> dict[str, float]:
    """Return the measures of one result.

    `prune_kept_share` is relative to the characters of the parent's reasoning (above 1 if it grew).
    `prune_tokens_saved` is for the whole training text, because the answer text can grow when the reasoning shrinks. It
    is in the student's tokens; without them it is `prune_tokens_saved_estimated` or `prune_characters_saved`.
    `prune_calls` and `prune_samples` count requests to a model.
    """
    parent = item.trace
    pruned = parent.model_copy(update={"reasoning": result.reasoning, "answer_text": result.answer_text})
    return {
        "prune_kept_share": len(result.reasoning) / len(parent.reasoning) if parent.reasoning else 1.0,
        "prune_kept_steps": float(len(result.kept)),
        _SAVED[counter.unit]: float(counter.count(parent.text) - counter.count(pruned.text)),
        "prune_calls": float(result.calls),
        "prune_samples": float(result.samples),
    }
