"""Binary search for the shortest prefix that passes a test, for many traces in parallel.

The test need not be monotone (a longer prefix can fail when a shorter one passes), so the result is a prefix that
passed, but not necessarily the shortest. Source: the binary cutting with backtracking of Efficient Long CoT Reasoning
(arXiv 2505.18440). n candidates need at most ceil(log2 n) + 1 tests.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from math import ceil, log2


class Test(Enum):
    """The result of testing a prefix."""

    __test__ = False  # not a pytest test case

    PASSED = "passed"
    FAILED = "failed"
    TOO_LONG = "too_long"  # exceeds the model's context, and so do longer prefixes
    BROKEN = "broken"  # there was no answer; the search of the trace ends


@dataclass
class Search:
    """The search of one trace over prefixes of 1 to `high` steps. `best` is the shortest passed prefix so far."""

    low: int
    high: int
    best: int | None = None
    calls: int = 0
    broken: bool = False
    tested: set[int] = field(default_factory=set)

    @property
    def limit(self) -> int:
        """The maximum number of tests."""
        return max_calls(self.high)

    def next(self) -> int | None:
        """Return the next prefix to test, or None when the search is finished.

        The interval is halved until one candidate is left, which is tested unless it was tested before. It is the
        whole trace when no shorter prefix passed.
        """
        if self.broken or self.low > self.high:
            return None
        middle = (self.low + self.high) // 2
        return None if middle in self.tested else middle

    def record(self, count: int, outcome: Test) -> None:
        """Record the result for the prefix of `count` steps."""
        self.calls += 1
        self.tested.add(count)
        if outcome is Test.PASSED:
            self.best, self.high = count, count
        elif outcome is Test.FAILED:
            self.low = count + 1
        elif outcome is Test.TOO_LONG:
            self.high = count - 1
        else:
            self.broken = True


def max_calls(candidates: int) -> int:
    """Return the maximum number of tests of one search: ceil(log2 n) + 1."""
    return ceil(log2(candidates)) + 1


PrefixTest = Callable[[Sequence[tuple[int, int]]], Awaitable[list[Test]]]


async def shortest_prefixes(lengths: Sequence[int], test: PrefixTest) -> list[Search]:
    """Search all traces of `lengths` (steps, at least 1 each) in parallel.

    `test` is called once per round with (trace number, prefix length) for all unfinished searches, and returns the
    results.
    """
    searches = [Search(1, length) for length in lengths]
    bounds = [search.limit for search in searches]
    while pending := [
        (number, count) for number, search in enumerate(searches) if (count := search.next()) is not None
    ]:
        for (number, count), outcome in zip(pending, await test(pending), strict=True):
            searches[number].record(count, outcome)
            if searches[number].calls > bounds[number]:
                raise AssertionError(f"{searches[number].calls} tests for {lengths[number]} prefixes")
    return searches
