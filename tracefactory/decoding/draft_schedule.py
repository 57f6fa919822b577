"""Choose the draft length and the drafting model with the highest expected tokens per second."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass

from tracefactory.decoding.decoder import Role

LENGTHS = (1, 2, 3, 4, 6, 8, 12, 16)
_DECAY = 0.97  # per round: counts from about fifty rounds ago have a quarter of their weight
SERVED_LENGTHS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
_WARMUP_LENGTHS = (8, 3, 12)
_NEWEST_WEIGHT = 0.4  # of the newest time in the moving average


@dataclass(frozen=True)
class DraftPlan:
    """How to draft: `drafter` drafts up to `length` tokens, one pass each; the other model scores them in one pass."""

    drafter: Role
    length: int


def expected_tokens(agreement: float, length: int) -> float:
    """Return the expected tokens of a draft: 1 + a + a^2 + ... + a^(length - 1) at agreement a.

    Token i of the draft counts when all tokens before it are correct. At the first wrong token, the scoring pass still
    provides the correct one.

    Args:
        agreement: the probability that a guess is correct.
        length: the number of tokens of the draft.
    """
    return float(length) if agreement >= 1 else (1 - agreement**length) / (1 - agreement)


class DraftScheduler:
    """Plans drafts from the measured agreement of both models and the measured duration of their passes.

    With t_m(n) seconds for a pass of model m over n tokens, a round of a batch yields

        tokens per second = rows * expected_tokens(a, K) / (K * t_drafter(rows) + t_scorer(rows * K))

    The plan is the drafter and the K with the largest value. A pass of a size that was never measured is assumed to
    cost as much as the next smaller size, so that every size is tried once. Sizes are rounded to half octaves. The plan
    never changes which tokens are written.
    """

    def __init__(self, fixed: DraftPlan | None = None) -> None:
        self._fixed = fixed
        self._seconds: dict[Role, dict[int, float]] = {role: {} for role in Role}
        self._correct: defaultdict[Role, float] = defaultdict(lambda: 4.0)
        self._total: defaultdict[Role, float] = defaultdict(lambda: 5.0)

    def agreement(self, drafter: Role) -> float:
        """Return the share of correct guesses among those that a model drafted or would have drafted."""
        return self._correct[drafter] / self._total[drafter]

    def plan(self, rows: int) -> DraftPlan:
        """Return how to draft for a batch of `rows` traces."""
        if self._fixed is not None:
            return self._fixed
        plans = [DraftPlan(drafter, length) for drafter in Role for length in LENGTHS]
        return max(plans, key=lambda plan: self.rate(plan, rows))

    def record_pass(self, role: Role, tokens: int, seconds: float) -> None:
        """Record the duration of a pass.

        Args:
            role: the model.
            tokens: the number of tokens of the pass, over all rows.
            seconds: its duration.
        """
        known, size = self._seconds[role], round(2 * math.log2(tokens))
        known[size] = (1 - _NEWEST_WEIGHT) * known[size] + _NEWEST_WEIGHT * seconds if size in known else seconds

    def record_guesses(self, drafter: Role, correct: int, total: int) -> None:
        """Record how many guesses of a round were correct.

        Args:
            drafter: the model that drafted, or would have drafted, the guesses.
            correct: the number of correct guesses.
            total: the number of guesses.
        """
        self._correct[drafter] = _DECAY * self._correct[drafter] + correct
        self._total[drafter] = _DECAY * self._total[drafter] + total

    def rate(self, plan: DraftPlan, rows: int) -> float:
        """Return the expected tokens per second of one trace.

        Args:
            plan: the draft length and the drafter.
            rows: the number of traces in the batch.
        """
        draft, score = self._cost(plan.drafter, rows), self._cost(plan.drafter.other, rows * plan.length)
        return expected_tokens(self.agreement(plan.drafter), plan.length) / (plan.length * draft + score + 1e-9)

    def _cost(self, role: Role, tokens: int) -> float:
        known, size = self._seconds[role], round(2 * math.log2(tokens))
        smaller = [one for one in known if one <= size]
        if smaller:
            return known[max(smaller)]
        return known[min(known)] if known else 0.0


class ServedDraftScheduler:
    """Plans the draft length of a server for the highest expected tokens per second of one trace.

    A draft of K tokens takes a + b * K seconds (least squares over recent rounds) and c seconds to score. With an
    agreement g, the share of correct guesses among those whose predecessors are correct,

        tokens per second = (1 + g + ... + g^(K - 1)) / (a + b * K + c)

    The length never changes which tokens are written.
    """

    def __init__(self, fixed: int | None = None) -> None:
        self._fixed = fixed
        self._correct, self._total = 4.0, 5.0
        self._sums = [0.0] * 5  # of 1, K, K^2, seconds, K * seconds
        self.score_s = 0.0

    @property
    def agreement(self) -> float:
        """The share of correct guesses."""
        return self._correct / self._total

    def length(self) -> int:
        """Return how many tokens to draft."""
        if self._fixed is not None:
            return self._fixed
        if self._sums[0] < len(_WARMUP_LENGTHS):
            return _WARMUP_LENGTHS[int(self._sums[0])]  # several lengths, to separate a from b
        return max(SERVED_LENGTHS, key=self.rate)

    def record_draft(self, tokens: int, seconds: float) -> None:
        """Record the duration of a draft."""
        terms = (1.0, tokens, tokens**2, seconds, tokens * seconds)
        self._sums = [_DECAY * old + new for old, new in zip(self._sums, terms, strict=True)]

    def record_score(self, seconds: float) -> None:
        """Record the duration of scoring a draft."""
        self.score_s = (1 - _NEWEST_WEIGHT) * self.score_s + _NEWEST_WEIGHT * seconds if self.score_s else seconds

    def record_guess(self, *, correct: bool) -> None:
        """Record whether a guess was correct."""
        self._correct, self._total = _DECAY * self._correct + correct, _DECAY * self._total + 1

    def draft_s(self, length: int) -> float:
        """Return the expected seconds of a draft of `length`."""
        count, first, second, total, cross = self._sums
        spread = count * second - first**2
        slope = max(0.0, (count * cross - first * total) / spread) if spread > 0 else 0.0
        return max(0.0, (total - slope * first) / max(count, 1e-9)) + slope * length

    def rate(self, length: int) -> float:
        """Return the expected tokens per second with drafts of `length`."""
        return expected_tokens(self.agreement, length) / (self.draft_s(length) + self.score_s + 1e-9)
