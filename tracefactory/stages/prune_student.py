"""The student of a prune stage where it is not asked: its tokenizer, and its stored token scores gathered by step."""

from __future__ import annotations

from collections.abc import Sequence

from tracefactory.models.base import ModelSpec, Where
from tracefactory.models.local import LocalSpec
from tracefactory.models.transformers import TransformersSpec
from tracefactory.pruners import PruneItem, StepScores
from tracefactory.scores import ScoreStore
from tracefactory.students.scores import TokenScores
from tracefactory.students.spec import StudentSpec
from tracefactory.students.steps import step_curves


def has_tokenizer(model: ModelSpec) -> bool:
    """Tell whether a model's tokenizer is at hand: its weights are, or it is loaded by transformers."""
    return isinstance(model, LocalSpec | TransformersSpec)


def student_of(model: ModelSpec, where: Where) -> StudentSpec:
    """Return what to load a tokenizer from, and what scores are stored under.

    Raises:
        UserError: when its weights are missing.
    """
    if isinstance(model, TransformersSpec):
        return model.student(where)
    assert isinstance(model, LocalSpec)
    return StudentSpec(model=str(model.weights(where)))


def with_scores(items: Sequence[PruneItem], store: ScoreStore) -> list[PruneItem]:
    """Return the items with the scores of their steps; one whose trace was never scored stays without."""
    stored = store.get(item.trace.id for item in items)
    return [_scored(item, stored[item.trace.id][-1]) if item.trace.id in stored else item for item in items]


def _scored(item: PruneItem, scores: TokenScores) -> PruneItem:
    curves = step_curves(scores, [(step.start, step.end) for step in item.steps])
    found = StepScores(
        tokens=tuple(curves.tokens.tolist()),
        surprisal=tuple(curves.surprisal.tolist()),
        first_surprisal=tuple(curves.first_surprisal.tolist()),
        entropy=tuple(curves.entropy.tolist()),
    )
    return item.model_copy(update={"scores": found})
