"""The pass rate of a problem, with a confidence interval that is valid for few samples."""

from __future__ import annotations

from collections.abc import Iterable
from math import sqrt
from statistics import NormalDist

from tracefactory.core.rows import Frozen, Outcome


class PassRate(Frozen):
    """`passes` of `samples`, their ratio, and its confidence interval; without samples, these are 0, 0 and 1."""

    passes: int
    samples: int
    rate: float
    low: float
    high: float


def wilson(passes: int, samples: int, confidence: float = 0.95) -> PassRate:
    """Return the pass rate with Wilson's score interval (Wilson 1927, JASA 22, 209-212).

    Raises:
        ValueError: when `passes` is not between 0 and `samples`, or `confidence` not between 0 and 1.
    """
    if not 0 <= passes <= samples or not 0 < confidence < 1:
        raise ValueError(f"{passes} of {samples} passes at confidence {confidence}")
    if samples == 0:
        return PassRate(passes=0, samples=0, rate=0.0, low=0.0, high=1.0)
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    rate = passes / samples
    scale = 1 + z * z / samples
    centre = (rate + z * z / (2 * samples)) / scale
    half = z / scale * sqrt(rate * (1 - rate) / samples + z * z / (4 * samples * samples))
    low = 0.0 if passes == 0 else max(0.0, centre - half)
    high = 1.0 if passes == samples else min(1.0, centre + half)
    return PassRate(passes=passes, samples=samples, rate=rate, low=low, high=high)


def pass_rate(outcomes: Iterable[Outcome], confidence: float = 0.95) -> PassRate:
    """Return the pass rate over verdicts.

    A sample without an answer did not pass. Samples on which the verifier failed are not counted.
    """
    counted = [outcome for outcome in outcomes if outcome is not Outcome.VERIFIER_ERROR]
    return wilson(sum(outcome is Outcome.CORRECT for outcome in counted), len(counted), confidence)
