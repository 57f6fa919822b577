"""The student of a prune stage where it is not asked: its tokenizer, and its stored token scores gathered by step."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from tracefactory.core.model import Environment, ModelSpec
from tracefactory.core.rows import Trace
from tracefactory.models.local import LocalSpec
from tracefactory.models.transformers import TransformersSpec
from tracefactory.models.vllm import VLLMSpec
from tracefactory.pruning import PruneItem, StepScores
from tracefactory.store.scores import ScoreStore
from tracefactory.students.render import Rendered
from tracefactory.students.scores import TokenScores
from tracefactory.students.spec import StudentSpec
from tracefactory.students.steps import step_curves


def has_tokenizer(model: ModelSpec) -> bool:
    """Tell whether a model's tokenizer is at hand: its weights are, or its checkpoint is named."""
    return isinstance(model, LocalSpec | TransformersSpec | VLLMSpec)


def student_of(model: ModelSpec, environment: Environment) -> StudentSpec:
    """Return what to load a tokenizer from.

    Raises:
        UserError: when its weights are missing.
    """
    if isinstance(model, TransformersSpec | VLLMSpec):
        return model.student(environment)
    assert isinstance(model, LocalSpec)
    return StudentSpec(model=str(model.weights(environment)))


def with_scores(items: Sequence[PruneItem], store: ScoreStore, render: Callable[[Trace], Rendered]) -> list[PruneItem]:
    """Return the items with the scores of their steps; one whose text was never scored stays without.

    `render` writes a trace in the student's tokens: scores of the same trace with other tokens are of a text it had
    once.
    """
    stored = store.get(item.trace.id for item in items)
    found = []
    for item in items:
        known = stored.get(item.trace.id, ())
        rendered = render(item.trace) if known else None
        own = [one for one in known if rendered and np.array_equal(one.token_ids, _supervised(rendered))]
        found.append(_scored(item, own[0]) if own else item)
    return found


def _supervised(rendered: Rendered) -> np.ndarray:
    return rendered.ids[rendered.first : rendered.stop]


def _scored(item: PruneItem, scores: TokenScores) -> PruneItem:
    curves = step_curves(scores, [(step.start, step.end) for step in item.steps])
    found = StepScores(
        tokens=tuple(curves.tokens.tolist()),
        surprisal=tuple(curves.surprisal.tolist()),
        first_surprisal=tuple(curves.first_surprisal.tolist()),
        entropy=tuple(curves.entropy.tolist()),
    )
    return item.model_copy(update={"scores": found})
