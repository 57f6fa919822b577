"""The rule on distributions that are known exactly."""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tracefactory.sampling.acceptance import Acceptance, decide, predict_decisions
from tracefactory.sampling.candidates import NO_TOKEN, Candidates, Sampling, candidate_bounds, candidates_of
from tracefactory.sampling.noise import Noise

TEACHER_P = [0.5, 0.3, 0.15, 0.05]
STUDENT_P = [0.004, 0.596, 0.1, 0.3]
COUNT = 40_000


def places(count: int = COUNT) -> Noise:
    return Noise(np.arange(count, dtype=np.uint64), np.full(count, 3))


def pools(p: list[float], count: int = COUNT, allowed: NDArray[np.bool_] | None = None, **sampling: Any) -> Candidates:
    logits = torch.tensor(p, dtype=torch.float64).log()[None]
    one = candidates_of(logits, [Sampling(**{"temperature": 1.0, "top_p": 1.0, **sampling})], allowed)
    return one[np.zeros(count, dtype=np.int64)]


def shares(tokens: NDArray[np.int64]) -> list[float]:
    return [float(np.mean(tokens == token)) for token in range(4)]


def test_accepted_tokens_have_the_shares_that_the_rule_implies() -> None:
    """Token 0 is refused (p 0.004): the others share what up to 5 draws leave, and the student what is left then."""
    decided = decide([Acceptance()] * COUNT, pools(TEACHER_P), pools(STUDENT_P), places())
    left = 0.5**5
    expected = [left * 0.004] + [
        t / 0.5 * (1 - left) + left * s for t, s in zip(TEACHER_P[1:], STUDENT_P[1:], strict=True)
    ]
    np.testing.assert_allclose(shares(decided.tokens), expected, atol=0.01)
    assert np.mean(decided.draws == 0) == pytest.approx(left, abs=0.005)
    assert np.mean(decided.draws == 1) == pytest.approx(0.5, abs=0.01)
    assert np.mean(decided.draws == 3) == pytest.approx(0.125, abs=0.007)


def test_the_acceptance_threshold_is_absolute_and_not_a_ratio() -> None:
    """The teacher is fifty times as sure of token 0 as the student, and yet every first draw stands at p = 0.01."""
    decided = decide([Acceptance()] * COUNT, pools([0.97, 0.01, 0.01, 0.01]), pools([0.02, 0.5, 0.4, 0.08]), places())
    assert (decided.draws == 1).all()
    assert shares(decided.tokens)[0] == pytest.approx(0.97, abs=0.005)


def test_a_probability_equal_to_the_threshold_is_accepted() -> None:
    student = pools([0.25, 0.25, 0.25, 0.25])
    assert (decide([Acceptance(p=0.25)] * COUNT, pools(TEACHER_P), student, places()).draws == 1).all()
    assert (decide([Acceptance(p=0.2501)] * COUNT, pools(TEACHER_P), student, places()).draws == 0).all()


def test_a_token_outside_the_students_top_k_is_rejected() -> None:
    decided = decide([Acceptance(draws=1)] * COUNT, pools([0, 0, 1, 0]), pools(STUDENT_P, top_k=2), places())
    assert (decided.draws == 0).all()
    assert set(decided.tokens.tolist()) == {1, 3}


@pytest.mark.parametrize(("tested", "first"), [("raw", 0.0), ("tempered", 1.0)])
def test_the_tested_probability_is_raw_or_tempered(tested: Literal["raw", "tempered"], first: float) -> None:
    """Cold, the student's 0.6 becomes 0.84 of its nucleus of two."""
    student = pools([0.6, 0.25, 0.1, 0.05], temperature=0.5, top_p=0.9, tested=tested)
    mass = 0.6**2 + 0.25**2
    threshold = Acceptance(p=0.36 / mass - 1e-9)
    assert np.mean(decide([threshold] * COUNT, pools([1, 0, 0, 0]), student, places()).draws == 1) == first


def test_tempered_probabilities_count_a_nucleus_wider_than_top_k() -> None:
    flat = torch.zeros(1, 1000, dtype=torch.float64)
    found = candidates_of(flat, [Sampling(temperature=1.0, top_p=0.5, top_k=5, tested="tempered")])
    np.testing.assert_allclose(found.tested, 1 / 500, atol=1e-9)


def test_the_nucleus_includes_the_token_that_reaches_top_p() -> None:
    drawn = pools([0.5, 0.3, 0.15, 0.05], top_p=0.6).draw(places(), 0)
    assert set(drawn.tolist()) == {0, 1}
    assert np.mean(drawn == 0) == pytest.approx(0.625, abs=0.01)
    assert set(pools([0.5, 0.3, 0.15, 0.05], temperature=0).draw(places(), 0).tolist()) == {0}


def test_tokens_without_a_student_counterpart_are_never_proposed() -> None:
    allowed = np.array([False, True, False, True])
    drawn = pools(TEACHER_P, allowed=allowed).draw(places(), 0)
    assert np.mean(drawn == 1) == pytest.approx(0.3 / 0.35, abs=0.01)
    nothing = pools(TEACHER_P, 10, allowed=np.zeros(4, dtype=np.bool_))
    assert (nothing.draw(places(10), 0) == NO_TOKEN).all()
    decided = decide([Acceptance()] * 10, nothing, pools(STUDENT_P, 10), places(10))
    assert (decided.draws == 0).all()
    assert NO_TOKEN not in decided.tokens


def test_each_position_is_decided_by_its_rule() -> None:
    rules = [Acceptance(draws=1), Acceptance(draws=9, p=0.0001)] * (COUNT // 2)
    draws = decide(rules, pools(TEACHER_P), pools(STUDENT_P), places()).draws
    assert np.mean(draws[::2] == 0) == pytest.approx(0.5, abs=0.01)
    assert (draws[1::2] == 1).all()


def test_predicted_decisions_are_better_than_independent_draws() -> None:
    noise, rules = places(), [Acceptance()] * COUNT
    alike = [0.45, 0.35, 0.15, 0.05]
    decided = decide(rules, pools(TEACHER_P), pools(alike), noise)
    agreement = float(np.mean(predict_decisions(rules, pools(alike), noise) == decided.tokens))
    independent = math.fsum(a * b for a, b in zip(TEACHER_P, alike, strict=True))
    assert agreement > 0.85 > independent
    assert (
        predict_decisions(rules, pools(TEACHER_P), noise)
        == decide(rules, pools(TEACHER_P), pools(TEACHER_P), noise).tokens
    ).all()


def test_a_greedy_position_tests_its_likeliest_token_with_certainty() -> None:
    found = pools([0.5, 0.3, 0.15, 0.05], 1, temperature=0, top_p=0.4, tested="tempered")
    assert found.tested.tolist() == [[1.0, 0.0, 0.0, 0.0]]


def test_positions_with_fewer_candidates_are_filled_with_no_token() -> None:
    joined = Candidates.concatenate([pools(TEACHER_P, 1, top_k=4), pools(TEACHER_P, 1, top_k=2)])
    assert joined.ids[1].tolist() == [0, 1, NO_TOKEN, NO_TOKEN]
    assert joined.weights[1, 2:].tolist() == [-math.inf, -math.inf]
    assert joined.tested[1, 2:].tolist() == [0.0, 0.0]


@pytest.mark.parametrize("temperature", [0.5, 2.0])
@pytest.mark.parametrize("tail", ["even", "steep", "mixed"])
def test_bounds_hold_the_candidates_of_the_full_vocabulary(temperature: float, tail: str) -> None:
    """Each bound is reached: by unknown tokens of equal probability, and by ones like the last known token."""
    rest = {"even": [0.002] * 100, "steep": [0.1, 0.1], "mixed": [0.05] * 2 + [0.005] * 20}[tail]
    p = np.array([0.4, 0.3, 0.1, *rest, *[0.0] * (100 - len(rest))])
    sampling = Sampling(temperature=temperature, top_p=0.99, top_k=3, tested="tempered")
    exact = candidates_of(torch.tensor(p).log()[None], [sampling])
    rows = [[(token, math.log(p[token])) for token in range(known)] for known in (3, 2)]  # rows of different lengths
    fewer, more = candidate_bounds(rows, [sampling, Sampling(top_k=2)], len(p))
    assert fewer.ids.tolist() == [[0, 1, 2], [0, 1, NO_TOKEN]]
    assert (fewer.weights[0] >= exact.weights[0] - 1e-9).all()
    assert (more.weights[0] <= exact.weights[0] + 1e-9).all()
    assert (fewer.tested[0] >= exact.tested[0] - 1e-9).all()
    assert (more.tested[0] <= exact.tested[0] + 1e-9).all()
    if tail != "mixed":
        reached = fewer if (tail == "even") == (temperature < 1) else more
        np.testing.assert_allclose(reached.weights[0], exact.weights[0], atol=1e-9)
