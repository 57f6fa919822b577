"""A trace as one student sees it, for a person: its least likely spans, and its steps; from stored scores alone."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from tracefactory.core.rows import Frozen
from tracefactory.core.token_scores import Span, TokenScores
from tracefactory.students.measures import least_likely, mean_surprisal, rank_surprisal
from tracefactory.students.steps import step_curves
from tracefactory.text.steps import segment

UNLIKELY = 0.01  # the threshold of p that reverse speculative decoding accepts a token from (arXiv 2509.22230)
LEAST = 3


class UnlikelyToken(Frozen):
    """A token with its place in `StudentView.text`, and what the student finds likeliest there, if that was stored."""

    start: int
    end: int
    token: str
    p: float
    rank: int
    instead: str | None


class StepLine(Frozen):
    """One step with its place in the body and its curve values (see `StepCurves`); None where it has no token."""

    start: int
    end: int
    kind: str
    text: str
    tokens: int
    surprisal: float | None
    entropy: float | None
    clipped_rank: float | None


class StudentView(Frozen):
    """What a student's stored scores say of one trace.

    `text` is what the student would be trained to write, or just the body (reasoning, or the answer alone) where the
    whole was not stored; `marked` are the characters of its tokens below `threshold`, joined where they touch, or of
    the least likely tokens where none is below it. `steps` are those of the body, as pruning cuts it by default.
    """

    trace: str
    student: str
    text: str
    threshold: float
    tokens: int
    below: int
    mean_surprisal: float
    rank_surprisal: float
    marked: tuple[Span, ...]
    least: tuple[UnlikelyToken, ...]
    steps: tuple[StepLine, ...]


def view_of(trace_id: str, student: str, scores: TokenScores, body: str, threshold: float = UNLIKELY) -> StudentView:
    """Return the view of a trace whose reasoning (its answer, when it has none) is `body`.

    Raises:
        ValueError: for a trace without supervised tokens.
    """
    text, shift = (body, scores.body_start) if scores.text is None else (scores.text, 0)
    shown = np.flatnonzero((scores.ends > shift) & (scores.starts < shift + len(text)))
    below = [int(index) for index in shown if scores.logprobs[index] < math.log(threshold)]
    least = [index for index in least_likely(scores, len(scores)) if index in set(shown.tolist())][:LEAST]
    return StudentView(
        trace=trace_id,
        student=student,
        text=text,
        threshold=threshold,
        tokens=len(scores),
        below=len(below),
        mean_surprisal=mean_surprisal(scores),
        rank_surprisal=rank_surprisal(scores),
        marked=_joined([_place(scores, index, shift, len(text)) for index in below or sorted(least)]),
        least=tuple(_token(scores, index, text, shift) for index in least),
        steps=step_lines(scores, body),
    )


def step_lines(scores: TokenScores, body: str) -> tuple[StepLine, ...]:
    """Return the steps of a trace's body with their curves."""
    steps = segment(body)
    curves = step_curves(scores, [(step.start, step.end) for step in steps])
    columns = (curves.tokens, curves.surprisal, curves.entropy, curves.clipped_rank)
    return tuple(
        StepLine(
            start=step.start,
            end=step.end,
            kind=step.kind.value,
            text=body[step.start : step.end],
            tokens=int(tokens),
            surprisal=_known(surprisal),
            entropy=_known(entropy),
            clipped_rank=_known(rank),
        )
        for step, tokens, surprisal, entropy, rank in zip(steps, *columns, strict=True)
    )


def _known(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


def _place(scores: TokenScores, index: int, shift: int, length: int) -> Span:
    start, end = int(scores.starts[index]) - shift, int(scores.ends[index]) - shift
    return max(0, start), min(length, end)


def _token(scores: TokenScores, index: int, text: str, shift: int) -> UnlikelyToken:
    start, end = _place(scores, index, shift, len(text))
    return UnlikelyToken(
        start=start,
        end=end,
        token=text[start:end],
        p=float(np.exp(np.float64(scores.logprobs[index]))),
        rank=int(scores.ranks[index]),
        instead=None if scores.instead is None else scores.instead[index],
    )


def _joined(spans: Sequence[Span]) -> tuple[Span, ...]:
    """Join spans, in order, where they touch or overlap (the pieces of one character do)."""
    joined: list[Span] = []
    for start, end in spans:
        if joined and start <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
        else:
            joined.append((start, end))
    return tuple(joined)
