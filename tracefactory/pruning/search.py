"""Binary search for the shortest prefix that passes a test, over many traces in lockstep.

The test need not be monotone (a longer prefix may fail where a shorter passed), so what is found is a prefix that was
tested and passed, not the shortest of all. Source: Efficient Long CoT Reasoning (arXiv 2505.18440), its binary cutting
with backtracking; n candidates take at most ceil(log2 n) rounds and one test more.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from math import ceil, log2


class Test(Enum):
    """How a prefix did."""

    __test__ = False  # not a test case of pytest's

    PASSED = "passed"
    FAILED = "failed"
    TOO_LONG = "too_long"  # it does not fit the model's context, so no longer one does
    BROKEN = "broken"  # no answer came: the trace's search ends


@dataclass
class Search:
    """The search of one trace over prefixes of 1 to `high` steps. `best` is the shortest prefix that passed so far."""

    low: int
    high: int
    best: int | None = None
    calls: int = 0
    broken: bool = False
    asked: set[int] = field(default_factory=set)

    @property
    def limit(self) -> int:
        """The most tests the search may take."""
        return most_calls(self.high)

    def next(self) -> int | None:
        """Return the prefix to test now, or None when the search is over.

        The interval halves until one candidate is left. It is tested too unless it was: that is the whole trace when
        nothing shorter passed.
        """
        if self.broken or self.low > self.high:
            return None
        middle = (self.low + self.high) // 2
        return None if middle in self.asked else middle

    def tell(self, count: int, outcome: Test) -> None:
        """Take in how the prefix of `count` steps did."""
        self.calls += 1
        self.asked.add(count)
        if outcome is Test.PASSED:
            self.best, self.high = count, count
        elif outcome is Test.FAILED:
            self.low = count + 1
        elif outcome is Test.TOO_LONG:
            self.high = count - 1
        else:
            self.broken = True


def most_calls(candidates: int) -> int:
    """Return the bound on the tests of one search: ceil(log2 n) + 1."""
    return ceil(log2(candidates)) + 1


Ask = Callable[[Sequence[tuple[int, int]]], Awaitable[list[Test]]]


async def shortest_prefixes(lengths: Sequence[int], ask: Ask) -> list[Search]:
    """Search every trace of `lengths` (steps, at least 1 each) at once.

    `ask` is given (trace number, prefix length) for all traces whose search still runs and returns how each did; it is
    called once a round, so rounds and not traces decide how often.
    """
    searches = [Search(1, length) for length in lengths]
    bounds = [search.limit for search in searches]
    while asking := [(number, count) for number, search in enumerate(searches) if (count := search.next()) is not None]:
        for (number, count), outcome in zip(asking, await ask(asking), strict=True):
            searches[number].tell(count, outcome)
            if searches[number].calls > bounds[number]:
                raise AssertionError(f"{searches[number].calls} tests for {lengths[number]} prefixes")
    return searches
