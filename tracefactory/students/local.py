"""Local naturalness: the probability of each step for the student, given only the few steps before it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np

from tracefactory.core.model import RequestFailed
from tracefactory.core.token_scores import Span, TokenScores
from tracefactory.students.measures import mean_surprisal
from tracefactory.students.render import Rendered
from tracefactory.students.steps import token_ranges


class Scorer(Protocol):
    """A student that scores renderings: in this process (`InProcess`) or behind a server (`ServedStudent`)."""

    async def score(self, rendered: Sequence[Rendered]) -> list[TokenScores | RequestFailed]:
        """Score the supervised tokens of every rendering, in order."""
        ...


async def local_naturalness(
    student: Scorer, traces: Sequence[tuple[Rendered, Sequence[Span]]], window: int = 4
) -> list[float | RequestFailed | None]:
    """Return for each trace the mean over its steps of the step's mean token log-probability in a local window.

    Definition (arXiv 2510.03988): each step is scored under the student with only the last `window` steps as context,
    then averaged. Higher is more natural; unlike the log-probability of the whole trace, it stays informative for long
    traces. The publication does not confirm the paper's steps and window. Here, the prompt counts as the step before
    the first one, so only the first steps have it in their context. Every window starts with the control token at the
    start of the rendering, if there is one. Steps without a token are skipped.

    The cost is a forward pass over about (1 + window) times the tokens of the trace.

    Args:
        student: the student that scores the windows.
        traces: each rendering with its steps: character ranges of the trace's body, as in `step_curves`.
        window: the number of steps before a step that the student sees.

    Returns:
        One value per trace, in nats per token; None for a trace without a step with tokens, and the failure for a trace
        of which a window could not be scored.

    Raises:
        ValueError: for a window below 1, and what the student raises.
    """
    if window < 1:
        raise ValueError("the window must have at least one step")
    windows = [step_windows(rendered, steps, window) for rendered, steps in traces]
    scores = iter(await student.score([piece for of_trace in windows for piece in of_trace]))
    found: list[float | RequestFailed | None] = []
    for of_trace in windows:
        scored = [next(scores) for _ in of_trace]
        failed = [one for one in scored if isinstance(one, RequestFailed)]
        values = [-mean_surprisal(one) for one in scored if isinstance(one, TokenScores)]
        found.append(failed[0] if failed else float(np.mean(values)) if values else None)
    return found


def step_windows(rendered: Rendered, steps: Sequence[Span], window: int) -> list[Rendered]:
    """Return one rendering per step with tokens: its supervised tokens, after those of the steps before it.

    Args:
        rendered: the rendering of the trace.
        steps: character ranges of the trace's body.
        window: the number of steps before each step.
    """
    ranges = token_ranges(rendered.starts - rendered.body_start, rendered.ends - rendered.body_start, steps)
    ranges = [(first + rendered.first, stop + rendered.first) for first, stop in ranges if first < stop]
    openings = [0, *(first for first, _ in ranges)]  # the prompt, then the steps
    pieces = []
    for index, (first, stop) in enumerate(ranges):
        opening = openings[max(0, index + 1 - window)]
        ids = rendered.ids[opening:stop]
        if opening > 0 and rendered.lead is not None:
            ids = np.concatenate([np.array([rendered.lead], dtype=np.int32), ids])
        inside = slice(first - rendered.first, stop - rendered.first)
        pieces.append(
            replace(
                rendered,
                ids=ids,
                first=len(ids) - (stop - first),
                stop=len(ids),
                starts=rendered.starts[inside],
                ends=rendered.ends[inside],
            )
        )
    return pieces
