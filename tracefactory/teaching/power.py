"""How small a difference between two datasets a comparison of their students finds, and how many questions it needs.

The comparison is `tracefactory.teaching.statistics.compare`.
"""

from __future__ import annotations

from math import inf, sqrt
from statistics import NormalDist

import numpy as np

DISCORDANT = 0.2
"""An assumption, for planning: similar students differ on one question in five. Measured: `Difference.discordant`."""
SEED_SD = 0.03
"""An assumption, for planning: the accuracy varies by three points between training seeds. Measured: `Summary.seed_sd`;
the medians of the nine datasets of `pipelines/teach_sum_styles.yaml` were 3.0 (one learning rate) and 2.2 points (a
rate chosen for each), of 0 to 15.5 points."""
CHANCE = 0.5
"""An assumption: half of the discordance is the chance of single answers, the rest lies in the questions."""

MOST_QUESTIONS = 10**9


def assumed_seed_sd(seeds: int) -> float:
    """Return the `seed_sd` to plan with: `SEED_SD`, or 0 with one seed, which tells nothing about other seeds."""
    return SEED_SD if seeds > 1 else 0.0


def detectable(
    questions: int,
    seeds: int,
    *,
    discordant: float = DISCORDANT,
    seed_sd: float = SEED_SD,
    power: float = 0.8,
    level: float = 0.95,
) -> float:
    """Return the smallest true difference of accuracy that `compare` finds with this power, between two trained arms.

    The variance of the difference is discordant / questions + 2 * seed_sd^2 / seeds: the first term as in Connor 1987
    (Biometrics 43, 207-211) and Miller 2024 (arXiv 2411.00640), the second for two arms. The variance between seeds has
    to be estimated from the few there are, so quantiles are of t (Bloom 1995, Evaluation Review 19, 547-556), with the
    degrees of freedom that `compare` finds on average. In simulations the power was then 0.77 to 0.83 instead of 0.8
    for 3 and 5 seeds and 0.70 to 0.87 for 2 where `CHANCE` was right; where all discordance was chance, 0.57 to 0.79
    for 3 and 5 seeds, and 0.51 to 0.68 for 2. With 2 seeds more questions soon stop helping, and the result can even
    grow with them: the smaller the part of the questions in the error, the more of it is known from 2 seeds alone.

    Args:
        questions: the number of questions.
        seeds: the number of training seeds of each arm.
        discordant: the mean squared difference per question, for right and wrong answers the share of questions on
            which two students differ. A true difference cannot be larger than it; where the result would be, the share
            is taken to be as large as the result.
        seed_sd: the standard deviation of the accuracy between training seeds; 0 asks about these students alone.
        power: the probability of finding the difference, above 0.5 and below 1.
        level: the confidence of the interval, between 0 and 1.

    Returns:
        The difference, 0.01 for a point; above 1 when no difference can be found.

    Raises:
        ValueError: when an argument is out of its range, or one seed is to tell the variance between seeds.
    """
    _check_plan(questions, seeds, discordant, seed_sd, power, level)
    of_seeds = 2 * seed_sd**2 / seeds

    def needed(share: float) -> float:
        variance = share / questions + of_seeds
        freedom = inf
        if of_seeds:
            # Satterthwaite's, from estimated variances: the square of one over k degrees is 1 + 2/k times too large.
            degrees = (seeds - 1) * (1 + (seeds - 1) / (seeds + 1))
            freedom = degrees * (variance / (CHANCE * share / questions + of_seeds)) ** 2
        return (t_quantile(level, freedom) + t_quantile(2 * power - 1, freedom)) * sqrt(variance)

    found = needed(discordant)
    while found <= 1 and (again := needed(max(discordant, found))) > found * (1 + 1e-6):
        found = again
    return found


def questions_for(
    difference: float,
    seeds: int,
    *,
    discordant: float = DISCORDANT,
    seed_sd: float = SEED_SD,
    power: float = 0.8,
    level: float = 0.95,
) -> int | None:
    """Return how many questions `compare` needs to find a true difference with this power: the inverse of `detectable`.

    Args:
        difference: the true difference of accuracy, above 0 and at most 1.
        seeds: the number of training seeds of each arm.
        discordant: as in `detectable`.
        seed_sd: as in `detectable`.
        power: as in `detectable`.
        level: as in `detectable`.

    Returns:
        The number of questions, None when no number (up to 10^9) is enough because the training seeds vary too much:
        more seeds are needed then.

    Raises:
        ValueError: as `detectable`, and when the difference is out of its range.
    """
    if not 0 < difference <= 1:
        raise ValueError(f"a difference of accuracy is above 0 and at most 1, not {difference}")

    def enough(questions: int) -> bool:
        options = {"discordant": discordant, "seed_sd": seed_sd, "power": power, "level": level}
        return detectable(questions, seeds, **options) <= difference

    high = 1
    while not enough(high):
        high *= 2
        if high > MOST_QUESTIONS:
            return None
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def t_quantile(level: float, freedom: float) -> float:
    """Return the t that |T| stays below with probability `level`, for any degrees of freedom from 1 on.

    With T = sqrt(freedom) * tan(angle), the density of the angle is proportional to cos(angle)^(freedom - 1).
    """
    if freedom > 10_000:
        return NormalDist().inv_cdf((1 + level) / 2)
    angles = np.linspace(0, np.pi / 2, 4001)
    density = np.cos(angles) ** (freedom - 1)
    below = np.concatenate([[0.0], np.cumsum(density[1:] + density[:-1])])
    return sqrt(freedom) * float(np.tan(np.interp(level, below / below[-1], angles)))


def _check_plan(questions: int, seeds: int, discordant: float, seed_sd: float, power: float, level: float) -> None:
    if questions < 1 or seeds < 1:
        raise ValueError(f"a comparison needs at least one question and one seed, not {questions} and {seeds}")
    if not 0 < discordant <= 1 or not 0 <= seed_sd <= 0.5:
        raise ValueError(
            f"the share of discordant questions is above 0 and at most 1, not {discordant}, and the standard deviation "
            f"between seeds from 0 to 0.5, not {seed_sd}"
        )
    if not 0.5 < power < 1 or not 0 < level < 1:
        raise ValueError(f"the power is above 0.5 and below 1, not {power}, and the level between 0 and 1, not {level}")
    if seeds == 1 and seed_sd > 0:
        raise ValueError(
            "one training seed says nothing about the variance between seeds: plan with at least 2, or with seed_sd=0 "
            "for a comparison of these students alone"
        )
