"""The acceptance rule of reverse speculative decoding, as a pure function of both models' candidates and the noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from tracefactory.sampling.candidates import NO_TOKEN, Candidates
from tracefactory.sampling.noise import STUDENT, TEACHER, Ints, Noise


@dataclass(frozen=True)
class Acceptance:
    """Accept a teacher's draw when the student gives it a probability of at least `p`; allow at most `draws` draws."""

    p: float = 0.01
    draws: int = 5


@dataclass(frozen=True, eq=False)
class Decisions:
    """One token per position, and which of the teacher's draws (from 1) it is; 0 is the student's own draw.

    `teacher_draws` [P, draws] holds the draws that the teacher made, then NO_TOKEN.
    """

    tokens: Ints
    draws: Ints
    teacher_draws: Ints

    def matches(self, other: Decisions) -> NDArray[np.bool_]:
        """Return for each position whether both decisions have the same token and the same teacher draws."""
        same_draws = (self.teacher_draws == other.teacher_draws).all(axis=1)
        matching: NDArray[np.bool_] = same_draws & (self.tokens == other.tokens)
        return matching


def decide(rules: Sequence[Acceptance], teacher: Candidates, student: Candidates, noise: Noise) -> Decisions:
    """Decide the token of every position (arXiv 2509.22230, following its authors' code).

    The teacher draws from its candidates, with replacement, until a draw is among the student's candidates with a
    tested probability of at least `p`: an absolute threshold, not the ratio of speculative decoding. When none of
    `draws` draws is accepted, the student draws from its own candidates. Each position depends only on its own
    candidates and noise.

    Args:
        rules: the rule of each position.
        teacher: the teacher's candidates.
        student: the student's candidates.
        noise: the random numbers of the positions.
    """
    thresholds = np.array([rule.p for rule in rules])
    max_draws = np.array([rule.draws for rule in rules], dtype=np.int64)
    tokens = np.full(len(teacher), NO_TOKEN, dtype=np.int64)
    draws = np.zeros(len(teacher), dtype=np.int64)
    teacher_draws = np.full((len(teacher), int(max_draws.max(initial=0))), NO_TOKEN, dtype=np.int64)
    for draw in range(teacher_draws.shape[1]):
        undecided = np.flatnonzero((tokens == NO_TOKEN) & (draw < max_draws))
        proposed = teacher[undecided].draw(noise[undecided], TEACHER + draw)
        teacher_draws[undecided, draw] = proposed
        accepted = student[undecided].probability(proposed) >= thresholds[undecided]
        tokens[undecided[accepted]] = proposed[accepted]
        draws[undecided[accepted]] = draw + 1
    rejected = np.flatnonzero(tokens == NO_TOKEN)
    tokens[rejected] = student[rejected].draw(noise[rejected], STUDENT)
    return Decisions(tokens, draws, teacher_draws)


def predict_decisions(rules: Sequence[Acceptance], student: Candidates, noise: Noise) -> Ints:
    """Predict the tokens of `decide` without the teacher: what the student would draw with the teacher's noise.

    Only tokens that the student would accept are predicted. Where it accepts none, its own draw is the decision.
    """
    acceptable: NDArray[np.bool_] = student.tested >= np.array([rule.p for rule in rules])[:, None]
    restricted = replace(student, weights=np.where(acceptable, student.weights, -np.inf))
    guesses = restricted.draw(noise, TEACHER)
    return np.where(guesses == NO_TOKEN, student.draw(noise, STUDENT), guesses)
