"""The rule of reverse speculative decoding, as a pure function of two pools and their noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tracefactory.sampling.candidates import NO_TOKEN, Pools
from tracefactory.sampling.noise import STUDENT, TEACHER, Longs, Noise


@dataclass(frozen=True)
class Acceptance:
    """A teacher's draw is accepted at a student's probability of `p` or more; it draws at most `draws` times."""

    p: float = 0.01
    draws: int = 5


@dataclass(frozen=True, eq=False)
class Decisions:
    """One token per place, and by which of the teacher's draws (from 1) it came; 0 is the student's own draw.

    `seen` [P, draws] are the teacher's draws as far as they were made, NO_TOKEN otherwise.
    """

    tokens: Longs
    draws: Longs
    seen: Longs

    def same(self, other: Decisions) -> NDArray[np.bool_]:
        """Tell for each place whether another decision went the same way, draw by draw."""
        alike: NDArray[np.bool_] = (self.seen == other.seen).all(axis=1) & (self.tokens == other.tokens)
        return alike


def decide(rules: Sequence[Acceptance], teacher: Pools, student: Pools, noise: Noise) -> Decisions:
    """Decide the token of every place (arXiv 2509.22230, by its authors' code).

    The teacher draws from its pool, with replacement, until a draw is in the student's pool with a tested probability
    of at least `p`: an absolute threshold, not the ratio of speculative decoding. When none of `draws` draws is
    accepted, the student draws from its own pool. A place depends on nothing but its own pools and noise.
    """
    least = np.array([rule.p for rule in rules])
    most = np.array([rule.draws for rule in rules], dtype=np.int64)
    tokens = np.full(len(teacher), NO_TOKEN, dtype=np.int64)
    draws = np.zeros(len(teacher), dtype=np.int64)
    seen = np.full((len(teacher), int(most.max(initial=0))), NO_TOKEN, dtype=np.int64)
    for draw in range(seen.shape[1]):
        undecided = np.flatnonzero((tokens == NO_TOKEN) & (draw < most))
        candidates = teacher[undecided].draw(noise[undecided], TEACHER + draw)
        seen[undecided, draw] = candidates
        accepted = student[undecided].probability(candidates) >= least[undecided]
        tokens[undecided[accepted]] = candidates[accepted]
        draws[undecided[accepted]] = draw + 1
    rejected = np.flatnonzero(tokens == NO_TOKEN)
    tokens[rejected] = student[rejected].draw(noise[rejected], STUDENT)
    return Decisions(tokens, draws, seen)


def foresee(rules: Sequence[Acceptance], student: Pools, noise: Noise) -> Longs:
    """Guess what `decide` will say, without the teacher: what the student would draw with the teacher's noise.

    Only tokens that the student would accept are guessed; where it would accept none, its own draw is certain.
    """
    acceptable: NDArray[np.bool_] = student.tested >= np.array([rule.p for rule in rules])[:, None]
    guesses = student.only(acceptable).draw(noise, TEACHER)
    return np.where(guesses == NO_TOKEN, student.draw(noise, STUDENT), guesses)
