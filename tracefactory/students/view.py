"""A view of a trace for users: its least likely tokens and its steps under one student, from stored scores."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from tracefactory.core.rows import Frozen
from tracefactory.core.token_scores import Span, TokenScores
from tracefactory.students.measures import mean_surprisal, rank_surprisal
from tracefactory.students.steps import step_curves
from tracefactory.text.steps import segment

UNLIKELY = 0.01  # the acceptance threshold of reverse speculative decoding (arXiv 2509.22230)
LEAST = 3


class UnlikelyToken(Frozen):
    """A token with its character range in `StudentView.text`; `instead` is the likeliest token, if it was stored."""

    start: int
    end: int
    token: str
    p: float
    rank: int
    instead: str | None


class StepLine(Frozen):
    """One step with its character range in the body and its values (see `StepCurves`), None when it has no tokens."""

    start: int
    end: int
    kind: str
    text: str
    tokens: int
    surprisal: float | None
    entropy: float | None
    clipped_rank: float | None


class StudentView(Frozen):
    """A summary of a student's stored scores of one trace.

    `text` is the text for training, or only the body (the reasoning, or the answer when there is none) if the whole
    text was not stored. `marked` are the merged character ranges of the tokens below `threshold`, or of the least
    likely tokens when none is below it. `steps` are those of the body in the default segmentation.
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


def view_of(
    trace_id: str,
    student: str,
    scores: TokenScores,
    body: str,
    threshold: float = UNLIKELY,
    over: TokenScores | None = None,
) -> StudentView:
    """Return the view of a trace.

    Args:
        trace_id: the id of the trace.
        student: the name of the student.
        scores: the student's token scores of the trace.
        body: the trace's reasoning (its answer, when it has none).
        threshold: the probability below which a token is marked.
        over: the scores of the tokens that the means are over; None for all of them.

    Raises:
        ValueError: for a trace without supervised tokens.
    """
    text, shift = (body, scores.body_start) if scores.text is None else (scores.text, 0)
    shown = np.flatnonzero((scores.ends > shift) & (scores.starts < shift + len(text)))
    below = [int(index) for index in shown if scores.logprobs[index] < math.log(threshold)]
    by_probability = np.argsort(scores.logprobs, kind="stable")  # ties keep the order of the text
    least = [int(index) for index in by_probability if index in set(shown.tolist())][:LEAST]
    return StudentView(
        trace=trace_id,
        student=student,
        text=text,
        threshold=threshold,
        tokens=len(scores),
        below=len(below),
        mean_surprisal=mean_surprisal(over or scores),
        rank_surprisal=rank_surprisal(over or scores),
        marked=_merged([_span(scores, index, shift, len(text)) for index in below or sorted(least)]),
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


def _span(scores: TokenScores, index: int, shift: int, length: int) -> Span:
    start, end = int(scores.starts[index]) - shift, int(scores.ends[index]) - shift
    return max(0, start), min(length, end)


def _token(scores: TokenScores, index: int, text: str, shift: int) -> UnlikelyToken:
    start, end = _span(scores, index, shift, len(text))
    return UnlikelyToken(
        start=start,
        end=end,
        token=text[start:end],
        p=float(np.exp(np.float64(scores.logprobs[index]))),
        rank=int(scores.ranks[index]),
        instead=None if scores.instead is None else scores.instead[index],
    )


def _merged(spans: Sequence[Span]) -> tuple[Span, ...]:
    """Merge sorted spans that touch or overlap, as the tokens of one character do."""
    merged: list[Span] = []
    for start, end in spans:
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return tuple(merged)
