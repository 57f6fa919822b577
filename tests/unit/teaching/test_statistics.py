"""Whether the intervals of a comparison hold what they promise, by simulation, and what they say when they cannot."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import pytest

from tracefactory.teaching.power import detectable
from tracefactory.teaching.statistics import UNTRAINED, Difference, Interval, compare, summary

Scores = dict[int, dict[str, float]]


def scores(rows: Mapping[int, list[float]]) -> Scores:
    return {seed: {f"q{number}": score for number, score in enumerate(row)} for seed, row in rows.items()}


def students(
    generator: np.random.Generator, base: np.ndarray, better: float, seed_sd: float, seeds: int, own: float = 0.15
) -> Scores:
    """Let trained students answer: how likely a question is answered depends on question, dataset and training seed."""
    suits = generator.uniform(-own, own, size=len(base))
    luck = generator.normal(0, seed_sd, size=(seeds, 1))
    answers = (generator.random((seeds, len(base))) < base + suits + better + luck).astype(float)
    return scores(dict(enumerate(answers.tolist())))


def simulated(
    times: int, *, better: float, seed_sd: float, seeds: int = 3, questions: int = 200, own: float = 0.15
) -> list[Difference]:
    found = []
    for number in range(times):
        generator = np.random.default_rng(number)
        base = generator.uniform(0.5 - (0.35 - own), 0.5 + (0.35 - own), size=questions)
        arm, baseline = (students(generator, base, one, seed_sd, seeds, own) for one in (better, 0.0))
        found.append(compare(arm, baseline, resamples=300, seed=number))
    return found


def covering(intervals: list[Interval | None], truth: float) -> float:
    return float(np.mean([one is not None and one.low <= truth <= one.high for one in intervals]))


def test_without_variance_between_seeds_both_intervals_cover_the_truth() -> None:
    found = simulated(200, better=0.04, seed_sd=0.0)
    assert 0.9 <= covering([one.interval for one in found], 0.04) <= 0.99
    assert 0.9 <= covering([one.seed_interval for one in found], 0.04) <= 0.995


@pytest.mark.parametrize("seeds", [2, 3])
def test_with_variance_between_seeds_only_the_interval_with_seeds_covers_the_truth(seeds: int) -> None:
    found = simulated(200, better=0.0, seed_sd=0.06, seeds=seeds)
    assert covering([one.interval for one in found], 0.0) < 0.8
    assert 0.9 <= covering([one.seed_interval for one in found], 0.0) <= 0.99
    assert np.mean([one.separable != "not separable" for one in found]) < 0.1, "the wider interval decides"


def test_the_interval_of_one_arm_covers_its_expected_accuracy() -> None:
    held, alone = [], []
    for number in range(200):
        generator = np.random.default_rng(number)
        arm = students(generator, generator.uniform(0.3, 0.7, size=150), 0.1, 0.06, 3)
        found = summary(arm, resamples=300)
        held.append(found.seed_interval)
        alone.append(found.interval)
    assert covering(list(alone), 0.6) < 0.85
    assert 0.9 <= covering(held, 0.6) <= 0.99


def test_a_planned_difference_is_found_with_the_planned_power() -> None:
    pilot = simulated(1, better=0.0, seed_sd=0.02, questions=5000, own=0.35)[0]
    difference = detectable(300, 3, discordant=pilot.discordant, seed_sd=0.02)
    found = simulated(150, better=difference, seed_sd=0.02, questions=300, own=0.35)
    assert 0.72 <= np.mean([one.separable == "better" for one in found]) <= 0.88
    assert not [one for one in found if one.separable == "worse"]


def test_the_interval_over_questions_is_that_of_bonett_and_price() -> None:
    gains, losses, questions = 130, 90, 1000
    arm = [1.0] * gains + [0.0] * losses + [1.0] * (questions - gains - losses)
    baseline = [0.0] * gains + [1.0] * losses + [1.0] * (questions - gains - losses)
    found = compare(scores({0: arm}), scores({0: baseline}))
    one, other = ((number + 1) / (questions + 2) for number in (gains, losses))
    half = 1.96 * math.sqrt((one + other - (one - other) ** 2) / (questions + 2))
    assert found.difference == pytest.approx(0.04)
    assert found.interval.low == pytest.approx(one - other - half, abs=0.001)
    assert found.interval.high == pytest.approx(one - other + half, abs=0.001)
    assert found.discordant == pytest.approx(0.22)
    assert found.separable == "better"


def test_where_seeds_decide_the_interval_is_as_wide_as_that_of_welch() -> None:
    """4 and 4 seeds whose students answer enough questions that the seeds matter most: t with 6 degrees of freedom."""
    rights, questions = (0.30, 0.40, 0.50, 0.60), 2000
    row = {share: [1.0] * round(share * questions) + [0.0] * round((1 - share) * questions) for share in rights}
    arm = scores({seed: row[share] for seed, share in enumerate(rights)})
    found = compare(arm, {seed + 10: answers for seed, answers in arm.items()}, resamples=4000)
    spread = math.sqrt(2 * float(np.var(rights, ddof=1)) / 4)
    assert found.seed_interval is not None
    assert found.seed_interval.high == pytest.approx(2.447 * spread, rel=0.08)
    assert found.seed_interval.low == pytest.approx(-2.447 * spread, rel=0.08)
    assert found.separable == "not separable"
    alone = summary(arm)
    assert alone.seed_sd == pytest.approx(float(np.std(rights, ddof=1)), rel=0.02)


def test_equal_scores_and_seeds_give_equal_results_in_any_order() -> None:
    generator = np.random.default_rng(5)
    base = generator.uniform(0.2, 0.8, size=80)
    arm, baseline = (students(generator, base, one, 0.05, 3) for one in (0.1, 0.0))
    shuffled = {seed: dict(reversed(arm[seed].items())) for seed in reversed(arm)}
    assert compare(arm, baseline, seed=4) == compare(shuffled, baseline, seed=4)
    stored = compare(arm, baseline, seed=4).model_dump_json()
    assert Difference.model_validate_json(stored) == compare(arm, baseline, seed=4)
    assert compare(arm, baseline, seed=4).seed_interval != compare(arm, baseline, seed=5).seed_interval
    there, back = compare(arm, baseline), compare(baseline, arm)
    assert there.difference == pytest.approx(-back.difference)
    assert there.seed_interval is not None
    assert back.seed_interval is not None
    assert there.seed_interval.low == pytest.approx(-back.seed_interval.high, abs=0.02)


def test_one_training_seed_leaves_the_seeds_out_and_says_so() -> None:
    three, one = scores({seed: [1.0, 0.0] * 100 for seed in range(3)}), scores({0: [1.0, 1.0, 0.0, 0.0] * 50})
    for arms, names in (((three, one), ("sums", "words")), ((one, three), ("words", "sums"))):
        found = compare(*arms, names=names, resamples=200)
        assert found.seed_interval is None
        assert found.seed_note is not None
        assert found.seed_note.startswith("words: one training seed")
        assert (found.arm_seeds, found.baseline_seeds) == tuple(map(len, arms))
    both = compare(one, one, names=("words", "words"), resamples=200)
    assert both.seed_note is not None
    assert both.seed_note.startswith("words and words: one training seed")
    alone = summary(one, resamples=200)
    assert (alone.seed_interval, alone.seed_sd, alone.seeds) == (None, None, 1)


def test_the_untrained_student_has_no_variance_between_seeds() -> None:
    luck = {seed: [1.0] * (50 + 30 * seed) + [0.0] * (150 - 30 * seed) for seed in range(3)}
    untrained = scores({UNTRAINED: [1.0] * 50 + [0.0] * 150})
    found = compare(scores(luck), untrained, resamples=500)
    assert found.seed_note is None
    assert found.seed_interval is not None
    assert found.seed_interval.high - found.seed_interval.low > 2 * (found.interval.high - found.interval.low)
    assert found.interval.low > 0
    assert found.separable == "not separable", "three seeds that vary so much do not show it"
    neither = compare(untrained, untrained, resamples=200)
    assert (neither.seed_interval, neither.separable) == (None, "not separable")
    assert neither.seed_note == "no student was trained, so there are no training seeds"


def test_questions_without_a_score_are_left_out_and_counted() -> None:
    arm = {0: {"a": 1.0, "b": 1.0, "c": 0.0}, 1: {"a": 1.0, "c": 1.0, "d": 0.0}}
    baseline = {0: {"a": 0.0, "c": 0.5, "e": 1.0}, 1: {"a": 0.0, "c": 0.5, "e": 1.0}}
    found = compare(arm, baseline, resamples=200)
    assert (found.questions, found.excluded, found.missing_arm, found.missing_baseline) == (2, 3, 3, 2)
    assert (found.arm_mean, found.baseline_mean, found.difference) == (0.75, 0.25, 0.5)
    alone = summary(arm, resamples=200)
    assert (alone.mean, alone.questions, alone.excluded) == (0.75, 2, 2)


@pytest.mark.parametrize("number", [1, 2, 5])
def test_a_handful_of_questions_separates_nothing(number: int) -> None:
    """Without further questions the bootstrap of equal differences has no width: 1 question would decide."""
    rows = {seed: [1.0] * number for seed in range(2)}
    found = compare(scores(rows), scores({seed: [0.0] * number for seed in rows}))
    assert found.difference == 1.0
    assert found.interval.low < found.interval.high <= 1.0
    assert number == 5 or found.separable == "not separable"
    alone = summary(scores(rows))
    assert alone.interval.low < 0.9 < alone.interval.high <= 1.0


def test_the_chance_of_single_answers_is_not_taken_for_a_variance_between_seeds() -> None:
    """100, 101 and 102 right of 200 are what the same student answers when it is asked again."""
    generator = np.random.default_rng(3)
    rows = {one: generator.permutation([1.0] * (100 + one) + [0.0] * (100 - one)).tolist() for one in range(3)}
    found = summary(scores(rows))
    assert found.seed_sd == 0.0
    assert found.seed_interval is not None
    assert found.seed_interval.high - found.seed_interval.low < 1.02 * (found.interval.high - found.interval.low)


def test_equal_students_are_not_separable() -> None:
    for score in (0.0, 0.5, 1.0):
        arm = scores({seed: [score] * 300 for seed in range(3)})
        found = compare(arm, arm, resamples=300)
        assert (found.difference, found.discordant, found.separable) == (0.0, 0.0, "not separable")
        assert found.interval.low < 0 < found.interval.high
        assert found.seed_interval == found.interval


def test_a_clear_difference_has_its_direction() -> None:
    good, bad = scores({seed: [1.0] * 90 + [0.0] * 10 for seed in range(3)}), scores({7: [0.0] * 100, 9: [0.0] * 100})
    assert compare(good, bad).separable == "better"
    assert compare(bad, good).separable == "worse"


def test_many_questions_are_compared() -> None:
    answers = np.random.default_rng(1).integers(0, 2, size=100_000).astype(float).tolist()
    found = compare(scores({0: answers}), scores({0: [0.0] * 100_000}), resamples=100)
    assert found.questions == 100_000
    assert 0.001 < found.interval.high - found.interval.low < 0.01


@pytest.mark.parametrize(
    ("arm", "baseline", "says"),
    [
        ({}, {0: {"a": 1.0}}, "sums has no students"),
        ({0: {"a": 1.0}}, {}, "words has no students"),
        ({0: {}}, {0: {"a": 1.0}}, "no question in common"),
        ({0: {"a": 1.0}}, {0: {"b": 1.0}}, "sums and words have no question in common .*: 1 questions of one, 1 of"),
        ({0: {"a": math.nan}}, {0: {"a": 1.0}}, "sums, seed 0, question 'a': nan is not a score"),
        ({0: {"a": 1.0}}, {3: {"a": 1.0, "b": 1.01}}, "words, seed 3, question 'b': 1.01 is not a score"),
        ({0: {"a": -0.1}}, {0: {"a": 1.0}}, "-0.1 is not a score"),
        ({0: {"a": math.inf}}, {0: {"a": 1.0}}, "inf is not a score"),
        ({0: {"a": 1.0}, UNTRAINED: {"a": 1.0}}, {0: {"a": 1.0}}, "untrained student .* beside"),
    ],
)
def test_what_cannot_be_compared_is_refused(arm: Scores, baseline: Scores, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        compare(arm, baseline, names=("sums", "words"))


def test_seeds_without_a_common_question_and_odd_options_are_refused() -> None:
    with pytest.raises(ValueError, match="sums: no question has a score of every one of its 2 seeds"):
        summary({0: {"a": 1.0}, 1: {"b": 1.0}}, name="sums")
    for options in ({"level": 1.0}, {"level": math.nan}, {"resamples": 0}):
        with pytest.raises(ValueError, match="not"):
            summary({0: {"a": 1.0}}, **options)
