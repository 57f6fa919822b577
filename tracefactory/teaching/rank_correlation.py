"""Spearman's rank correlation, for the few datasets or measures of a comparison."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import permutations
from math import factorial, isfinite, sqrt

import numpy as np
from numpy.typing import NDArray

from tracefactory.core.rows import Frozen

EXACT = 8  # up to so many values all orders are tried: 8! = 40,320
PERMUTATIONS = 20_000
BLOCK = 2_000_000  # ranks held at once: 16 MB

Ranks = NDArray[np.float64]


class Correlation(Frozen):
    """Spearman's rank correlation of `n` pairs, and its two-sided p-value under permutation.

    Both are None when all values of one side are equal. `exact` says that all orders were tried.
    """

    rho: float | None
    p: float | None
    n: int
    exact: bool


def spearman(xs: Sequence[float], ys: Sequence[float], *, seed: int = 0) -> Correlation:
    """Return Spearman's rank correlation, with average ranks for ties, and its two-sided p-value.

    The p-value is the share of all orders of `ys` with a correlation at least as far from 0. For more than 8 values it
    is estimated from 20,000 random orders, as (found + 1) / (drawn + 1) (Phipson and Smyth 2010, Stat. Appl. Genet.
    Mol. Biol. 9, 39). It cannot be small for few values: at least 2/3! = 0.33 for 3, 2/5! = 0.017 for 5.

    Args:
        xs: the values of a measure, such as one per dataset.
        ys: the outcomes, in the same order.
        seed: the seed of the random orders.

    Raises:
        ValueError: when there are fewer than 3 pairs, the lengths differ, or a value is not a finite number.
    """
    if len(xs) != len(ys) or len(xs) < 3:
        raise ValueError(f"a rank correlation needs at least 3 pairs of values, not {len(xs)} and {len(ys)} values")
    if not all(isfinite(one) for one in (*xs, *ys)):
        raise ValueError("a rank correlation needs finite numbers")
    first, second = _centred_ranks(xs), _centred_ranks(ys)
    exact = len(xs) <= EXACT
    scale = sqrt(float(first @ first) * float(second @ second))
    if scale == 0:
        return Correlation(rho=None, p=None, n=len(xs), exact=exact)
    seen = float(first @ second)
    # Ranks are multiples of 1/2, so that sums which differ do so by far more than rounding.
    as_far = sum(int((np.abs(orders @ first) >= abs(seen) - 1e-6).sum()) for orders in _orders(second, seed))
    tried = factorial(len(xs)) if exact else PERMUTATIONS
    p = as_far / tried if exact else (as_far + 1) / (tried + 1)
    return Correlation(rho=seen / scale, p=p, n=len(xs), exact=exact)


def _centred_ranks(values: Sequence[float]) -> Ranks:
    """Return the ranks, ties with their average, less the mean rank."""
    _, places, counts = np.unique(np.asarray(values, dtype=np.float64), return_inverse=True, return_counts=True)
    ranks: Ranks = (np.cumsum(counts) - (counts - 1) / 2)[places] - (len(values) + 1) / 2
    return ranks


def _orders(ranks: Ranks, seed: int) -> Iterator[Ranks]:
    """Yield blocks of rows with the ranks in all orders, or in random ones when there are too many."""
    if len(ranks) <= EXACT:
        yield ranks[np.array(list(permutations(range(len(ranks)))))]
        return
    generator = np.random.default_rng(seed)
    rows = max(1, BLOCK // len(ranks))
    for start in range(0, PERMUTATIONS, rows):
        yield generator.permuted(np.tile(ranks, (min(rows, PERMUTATIONS - start), 1)), axis=1)
