"""Curves over the steps of a trace: token scores aggregated by step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from tracefactory.core.columns import Column, Type
from tracefactory.core.token_scores import Ints, Span, TokenScores
from tracefactory.students.measures import RANK_CLIP
from tracefactory.text.steps import Granularity, segment

Curve = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class StepCurves:
    """One value per step, in order; NaN for a step without tokens.

    `tokens` is their number; `surprisal` is the mean of -ln p in nats; `entropy` is the sum of token entropies in nats,
    the step entropy as the paper arXiv 2508.03346 defines it (its released code differs); `first_surprisal` is -ln p of
    the step's first token, by which arXiv 2508.05988 orders steps for removal; `clipped_rank` is the mean of
    min(rank, 100).
    """

    tokens: NDArray[np.int64]
    surprisal: Curve
    entropy: Curve
    first_surprisal: Curve
    clipped_rank: Curve


def step_curves(scores: TokenScores, steps: Sequence[Span]) -> StepCurves:
    """Aggregate token scores by step.

    `steps` are [start, end) character ranges of the trace's body (its reasoning, or its answer when it has no
    reasoning), in order and without overlap.

    Raises:
        ValueError: when they are not in order or overlap.
    """
    ranges = token_ranges(scores.starts - scores.body_start, scores.ends - scores.body_start, steps)
    surprisal = -scores.logprobs.astype(np.float64)
    ranks = np.minimum(scores.ranks, RANK_CLIP).astype(np.float64)
    return StepCurves(
        tokens=np.array([stop - first for first, stop in ranges], dtype=np.int64),
        surprisal=_means(surprisal, ranges),
        entropy=np.array(
            [float(scores.entropies[a:b].sum(dtype=np.float64)) if a < b else np.nan for a, b in ranges],
            dtype=np.float64,
        ),
        first_surprisal=np.array([surprisal[a] if a < b else np.nan for a, b in ranges], dtype=np.float64),
        clipped_rank=_means(ranks, ranges),
    )


def step_measures(scores: TokenScores, body: str, granularity: Granularity) -> dict[str, float | tuple[float, ...]]:
    """Return the surprisal curve of a trace: `steps`, their number, and `step_surprisal`, the mean of each in order.

    `body` is the trace's reasoning (its answer, when it has none). A step without tokens is NaN.
    """
    steps = segment(body, granularity)
    curve = step_curves(scores, [(step.start, step.end) for step in steps]).surprisal
    return {"steps": float(len(steps)), "step_surprisal": tuple(float(value) for value in curve)}


def step_columns(student: str) -> list[Column]:
    """Return the columns of `step_measures` under a student."""
    return [
        Column(name=f"{student}/steps", description="Steps of the reasoning.", unit="steps"),
        Column(
            name=f"{student}/step_surprisal",
            type=Type.NUMBERS,
            description="Mean surprisal of each step, in order; NaN for a step without tokens.",
            unit="nats per token",
            direction="lower",
        ),
    ]


def token_ranges(starts: Ints, ends: Ints, steps: Sequence[Span]) -> list[Span]:
    """Return the [first, stop) tokens of every step; the tokens' character ranges use the coordinates of the steps.

    A token belongs to the step of its last character, because subword tokens begin with their space. A token between
    two steps belongs to the first of them, as does one that begins in the last step and ends after it (".\\n" before a
    tag).

    Raises:
        ValueError: when steps are not in order or overlap.
    """
    bounds = [character for step in steps for character in step]
    if any(later < earlier for earlier, later in pairwise(bounds)):
        raise ValueError("steps must be in order and must not overlap")
    firsts = np.searchsorted(ends - 1, [start for start, _ in steps], side="left")
    last = np.searchsorted(starts, [steps[-1][1]], side="left") if steps else firsts
    stops = [*firsts[1:], *last]
    return [(int(first), int(stop)) for first, stop in zip(firsts, stops, strict=True)]


def _means(values: Curve, ranges: Sequence[Span]) -> Curve:
    return np.array([values[a:b].mean() if a < b else np.nan for a, b in ranges], dtype=np.float64)
