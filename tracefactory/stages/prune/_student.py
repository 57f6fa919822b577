"""The stored token scores of a prune stage's student, gathered by step."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tracefactory.core.token_scores import TokenScores
from tracefactory.pruning import PruneItem, StepScores
from tracefactory.store.scores import ScoreStore
from tracefactory.students.render import Renderer
from tracefactory.students.steps import step_curves


def with_scores(items: Sequence[PruneItem], store: ScoreStore, renderer: Renderer) -> list[PruneItem]:
    """Return the items with the scores of their steps; one whose text was never scored stays without.

    Args:
        items: the traces in steps.
        store: the token scores of the student.
        renderer: writes a trace in the student's tokens. Stored scores of other tokens are of an earlier text.
    """
    stored = store.get(item.trace.id for item in items)
    found = []
    for item in items:
        known = stored.get(item.trace.id, ())
        if known:
            trace = item.trace
            rendered = renderer.render(trace.problem.question, trace.reasoning, trace.answer_text)
            tokens = rendered.ids[rendered.first : rendered.stop]
            known = [one for one in known if np.array_equal(one.token_ids, tokens)]
        found.append(_scored(item, known[0]) if known else item)
    return found


def _scored(item: PruneItem, scores: TokenScores) -> PruneItem:
    curves = step_curves(scores, [(step.start, step.end) for step in item.steps])
    found = StepScores(
        tokens=tuple(curves.tokens.tolist()),
        surprisal=tuple(curves.surprisal.tolist()),
        first_surprisal=tuple(curves.first_surprisal.tolist()),
        entropy=tuple(curves.entropy.tolist()),
    )
    return item.model_copy(update={"scores": found})
