"""How far ahead to draft, and with which model: what is expected to give the most tokens per second."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass

from tracefactory.decoding.decoder import Role

LENGTHS = (1, 2, 3, 4, 6, 8, 12, 16)
_MEMORY = 0.97  # per round: what was seen about fifty rounds ago weighs a quarter
SERVED_LENGTHS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
_FIRST = (8, 3, 12)
_NEW = 0.4  # weight of the newest time


@dataclass(frozen=True)
class Plan:
    """`front` drafts up to `length` tokens, one pass each; the other model scores them all in one pass."""

    front: Role
    length: int


def expected_tokens(agreement: float, length: int) -> float:
    """Return the tokens that a draft of `length` gains: 1 + a + a^2 + ... + a^(length - 1) at agreement a.

    Token i of the draft counts when those before it were right; where the draft is wrong, the scoring pass still gives
    the right token.
    """
    return float(length) if agreement >= 1 else (1 - agreement**length) / (1 - agreement)


class Pace:
    """Learns from every round how often drafts are right and how long passes take, and plans the next.

    Per round of a batch, in seconds for a pass over n tokens of model m, t_m(n):

        tokens per second = rows * expected_tokens(a, K) / (K * t_front(rows) + t_back(rows * K))

    The plan is the front and the K with the largest value. A pass of a size that was never seen is taken to cost what
    the next smaller one does, so that it is tried once. Nothing decided here changes which tokens come out.
    """

    def __init__(self, fixed: Plan | None = None) -> None:
        self._fixed = fixed
        self._seconds: dict[Role, dict[int, float]] = {role: {} for role in Role}
        self._right: defaultdict[Role, float] = defaultdict(lambda: 4.0)
        self._seen: defaultdict[Role, float] = defaultdict(lambda: 5.0)

    def agreement(self, front: Role) -> float:
        """Return the share of drafted tokens that were right when `front` drafted, or would have been."""
        return self._right[front] / self._seen[front]

    def plan(self, rows: int) -> Plan:
        """Return how to draft for a batch of `rows` traces."""
        if self._fixed is not None:
            return self._fixed
        plans = [Plan(front, length) for front in Role for length in LENGTHS]
        return max(plans, key=lambda plan: self.rate(plan, rows))

    def took(self, role: Role, tokens: int, seconds: float) -> None:
        """Learn what a pass over `tokens` tokens cost."""
        known, size = self._seconds[role], _size(tokens)
        known[size] = (1 - _NEW) * known[size] + _NEW * seconds if size in known else seconds

    def saw(self, front: Role, right: int, seen: int) -> None:
        """Learn how many of the tokens that `front` drafted, or would have drafted, were right."""
        self._right[front] = _MEMORY * self._right[front] + right
        self._seen[front] = _MEMORY * self._seen[front] + seen

    def rate(self, plan: Plan, rows: int) -> float:
        """Return the tokens per second that one trace of a batch of `rows` is expected to make."""
        draft, score = self._cost(plan.front, rows), self._cost(plan.front.other, rows * plan.length)
        return expected_tokens(self.agreement(plan.front), plan.length) / (plan.length * draft + score + 1e-9)

    def _cost(self, role: Role, tokens: int) -> float:
        known, size = self._seconds[role], _size(tokens)
        smaller = [one for one in known if one <= size]
        if smaller:
            return known[max(smaller)]
        return known[min(known)] if known else 0.0


class ServedPace:
    """Learns how far a server should draft: what is expected to give the most tokens per second to one trace.

    With a and b such that a draft of K tokens takes a + b * K seconds (least squares over recent rounds), c seconds to
    score it, and an agreement g (the share of guesses that were right while those before them were):

        tokens per second = (1 + g + ... + g^(K - 1)) / (a + b * K + c)

    Nothing decided here changes which tokens come out.
    """

    def __init__(self, fixed: int | None = None) -> None:
        self._fixed = fixed
        self._right, self._seen = 4.0, 5.0
        self._sums = [0.0] * 5  # of 1, K, K^2, seconds, K * seconds
        self.score_s = 0.0

    @property
    def agreement(self) -> float:
        """Return the share of guesses that were right."""
        return self._right / self._seen

    def length(self) -> int:
        """Return how many tokens to draft."""
        if self._fixed is not None:
            return self._fixed
        if self._sums[0] < len(_FIRST):
            return _FIRST[int(self._sums[0])]  # different lengths, to tell a from b
        return max(SERVED_LENGTHS, key=self.rate)

    def drafted(self, tokens: int, seconds: float) -> None:
        """Learn what a draft took."""
        new = (1.0, tokens, tokens**2, seconds, tokens * seconds)
        self._sums = [_MEMORY * old + one for old, one in zip(self._sums, new, strict=True)]

    def scored(self, seconds: float) -> None:
        """Learn what scoring a draft took."""
        self.score_s = (1 - _NEW) * self.score_s + _NEW * seconds if self.score_s else seconds

    def saw(self, *, right: bool) -> None:
        """Learn whether a guess was right."""
        self._right, self._seen = _MEMORY * self._right + right, _MEMORY * self._seen + 1

    def draft_s(self, length: int) -> float:
        """Return the seconds that a draft of `length` is expected to take."""
        count, first, second, total, cross = self._sums
        spread = count * second - first**2
        slope = max(0.0, (count * cross - first * total) / spread) if spread > 0 else 0.0
        return max(0.0, (total - slope * first) / max(count, 1e-9)) + slope * length

    def rate(self, length: int) -> float:
        """Return the tokens per second that are expected of drafts of `length`."""
        return expected_tokens(self.agreement, length) / (self.draft_s(length) + self.score_s + 1e-9)


def _size(tokens: int) -> int:
    """Return the class of a pass: half octaves of its number of tokens."""
    return round(2 * math.log2(tokens))
