"""The stored token scores of a prune stage's student, gathered by step."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from tracefactory.core.rows import Trace
from tracefactory.core.token_scores import TokenScores
from tracefactory.pruning import PruneItem, StepScores
from tracefactory.store.scores import ScoreStore
from tracefactory.students.render import Rendered
from tracefactory.students.steps import step_curves


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
