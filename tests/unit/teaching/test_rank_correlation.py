"""Spearman's rank correlation against published values."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import pytest

from tracefactory.teaching.rank_correlation import spearman


def test_ties_have_their_average_rank() -> None:
    assert spearman([1, 2, 3, 4, 5], [5, 6, 7, 8, 7]).rho == pytest.approx(0.820782681668, abs=1e-9)
    assert spearman([10, 20, 20, 30], [1, 3, 2, 4]).rho == pytest.approx(0.948683298051, abs=1e-9)


@pytest.mark.parametrize(
    ("ys", "rho", "p"),
    [
        ([1, 2, 3], 1.0, 2 / 6),
        ([4, 3, 2, 1], -1.0, 2 / 24),
        ([2, 1, 3, 4, 5], 0.9, 10 / 120),
        ([1, 2, 3, 4, 5, 7, 6, 8], 1 - 6 * 2 / 504, 2 * 8 / 40320),
    ],
)
def test_few_values_have_the_exact_p_value(ys: list[float], rho: float, p: float) -> None:
    found = spearman(range(len(ys)), ys)
    assert found.rho == pytest.approx(rho)
    assert found.p == pytest.approx(p)
    assert found.exact


def test_more_values_have_the_p_value_of_random_orders() -> None:
    """The tables' critical value for 10 pairs at 5%, two-sided, is 0.648."""
    found = spearman(range(10), [2, 0, 6, 1, 5, 8, 3, 4, 9, 7])
    assert found.rho == pytest.approx(1 - 6 * 58 / 990)
    assert found.p == pytest.approx(0.049, abs=0.006)
    assert not found.exact
    assert found == spearman(range(10), [2, 0, 6, 1, 5, 8, 3, 4, 9, 7])
    assert spearman(range(12), range(12)).p == pytest.approx(1 / 20_001)


def test_p_values_of_unrelated_values_are_even() -> None:
    drawn = random.Random(2)
    found = [spearman(range(6), [drawn.random() for _ in range(6)]).p or 0.0 for _ in range(300)]
    assert sum(p <= 0.05 for p in found) <= 0.08 * len(found)
    assert 0.4 <= sum(p <= 0.5 for p in found) / len(found) <= 0.6


def test_one_value_throughout_has_no_rank_correlation() -> None:
    for xs, ys in (([1, 1, 1], [1, 2, 3]), ([1, 2, 3], [0.5, 0.5, 0.5]), ([1] * 12, [1] * 12)):
        found = spearman(xs, ys)
        assert (found.rho, found.p, found.n) == (None, None, len(xs))


@pytest.mark.parametrize(
    ("xs", "ys", "says"),
    [
        ([], [], "at least 3 pairs"),
        ([1, 2], [1, 2], "at least 3 pairs"),
        ([1, 2, 3], [1, 2, 3, 4], "3 and 4 values"),
        ([1, 2, math.nan], [1, 2, 3], "finite numbers"),
        ([1, 2, 3], [1, math.inf, 3], "finite numbers"),
    ],
)
def test_what_has_no_ranks_is_refused(xs: Sequence[float], ys: Sequence[float], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        spearman(xs, ys)
