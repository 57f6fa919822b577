"""What a comparison can find, against published values and its own inverse."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from tracefactory.teaching.power import detectable, questions_for, t_quantile


@pytest.mark.parametrize(("discordant", "error", "found"), [(0.2, 0.0123, 0.0345), (0.3, 0.0151, 0.0422)])
def test_one_seed_on_the_questions_of_gsm8k(discordant: float, error: float, found: float) -> None:
    """1,319 questions: standard errors of 1.2 and 1.5 points, differences of 3.4 and 4.2 points."""
    assert math.sqrt(discordant / 1319) == pytest.approx(error, abs=0.00005)
    assert detectable(1319, 1, discordant=discordant, seed_sd=0.0) == pytest.approx(found, abs=0.0001)


def test_one_question_in_five_that_differs_is_found_with_the_promised_power() -> None:
    """Paired right and wrong answers with a normal test, 4,000 comparisons at once."""
    questions, share = 1319, 0.2
    difference = detectable(questions, 1, discordant=share, seed_sd=0.0)
    gains, losses = (share + difference) / 2, (share - difference) / 2
    counts = np.random.default_rng(0).multinomial(questions, [gains, losses, 1 - share], size=4000)
    tested = (counts[:, 0] - counts[:, 1]) / np.sqrt(counts[:, 0] + counts[:, 1])
    assert np.mean(tested > 1.96) == pytest.approx(0.8, abs=0.03)


def test_what_helps_and_what_does_not() -> None:
    usual = detectable(1000, 3)
    assert detectable(2000, 3) < usual
    assert detectable(1000, 5) < usual < detectable(1000, 2)
    assert usual < detectable(1000, 3, power=0.9)
    assert usual < detectable(1000, 3, level=0.99)
    assert usual < detectable(1000, 3, discordant=0.4)
    assert usual < detectable(1000, 3, seed_sd=0.04)
    # Endless questions leave the seeds: t with 3 degrees of freedom.
    assert detectable(10**12, 3, seed_sd=0.01) == pytest.approx((3.182 + 0.978) * math.sqrt(2 / 3) * 0.01, rel=0.001)


def test_a_difference_cannot_be_larger_than_the_share_of_discordant_questions() -> None:
    """At 20 questions 20% are 4: the difference that is found has at least as many discordant questions as it says."""
    found = detectable(20, 1, discordant=0.2, seed_sd=0.0)
    assert found == pytest.approx((1.95996 + 0.84162) ** 2 / 20, rel=0.001)
    assert detectable(1, 1, seed_sd=0.0) > 1
    assert detectable(5, 3) > 1


@pytest.mark.parametrize("difference", [0.9, 0.2, 0.05, 0.034])
@pytest.mark.parametrize(("seeds", "seed_sd"), [(1, 0.0), (3, 0.01), (10, 0.02)])
def test_the_number_of_questions_is_the_smallest_that_is_enough(difference: float, seeds: int, seed_sd: float) -> None:
    number = questions_for(difference, seeds, seed_sd=seed_sd)
    assert number is not None
    assert detectable(number, seeds, seed_sd=seed_sd) <= difference < detectable(number - 1, seeds, seed_sd=seed_sd)


def test_no_number_of_questions_makes_up_for_seeds() -> None:
    assert questions_for(0.01, 3, seed_sd=0.01) is None
    assert questions_for(0.01, 30, seed_sd=0.01) is not None


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: detectable(0, 1, seed_sd=0.0), "at least one question"),
        (lambda: detectable(10, 0), "at least one question"),
        (lambda: detectable(10, 3, discordant=0.0), "discordant"),
        (lambda: detectable(10, 3, discordant=math.nan), "discordant"),
        (lambda: detectable(10, 3, seed_sd=-0.1), "between seeds"),
        (lambda: detectable(10, 3, power=0.5), "power"),
        (lambda: detectable(10, 3, level=1.0), "level"),
        (lambda: detectable(10, 1), "one training seed says nothing"),
        (lambda: questions_for(0.03, 1), "one training seed says nothing"),
        (lambda: questions_for(0.0, 3), "a difference of accuracy"),
        (lambda: questions_for(math.nan, 3), "a difference of accuracy"),
    ],
)
def test_a_plan_out_of_range_is_refused(call: Callable[[], object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        call()


@pytest.mark.parametrize(
    ("level", "freedom", "value"),
    [(0.95, 1, 12.706), (0.95, 2, 4.303), (0.95, 4, 2.776), (0.99, 10, 3.169), (0.6, 4, 0.941), (0.95, 120, 1.980)],
)
def test_quantiles_of_t_are_those_of_the_tables(level: float, freedom: float, value: float) -> None:
    assert t_quantile(level, freedom) == pytest.approx(value, rel=0.0005)


def test_quantiles_of_t_end_in_those_of_the_normal_distribution() -> None:
    assert t_quantile(0.95, math.inf) == pytest.approx(1.95996, abs=0.00001)
    assert t_quantile(0.95, 10_000) == pytest.approx(t_quantile(0.95, 10_001), rel=0.0005)
    assert t_quantile(0.95, 3) < t_quantile(0.95, 2.5) < t_quantile(0.95, 2)
