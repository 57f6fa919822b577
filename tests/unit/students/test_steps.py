from __future__ import annotations

import numpy as np
import pytest

from tracefactory.core.token_scores import TokenScores
from tracefactory.students.steps import step_columns, step_curves, token_ranges
from tracefactory.students.student import Student
from tracefactory.text.steps import Granularity, segment

REASONING = "Half of 84 is 42.\n\nWait, let me check. 42 + 42 = 84, so 半分は42個 is right.\n\nThe answer is 42."


def pieces(*lengths: int) -> tuple[np.ndarray, np.ndarray]:
    edges = np.cumsum([0, *lengths]).astype(np.int32)
    return edges[:-1], edges[1:]


def test_a_token_belongs_to_the_step_of_its_last_character() -> None:
    starts, ends = pieces(3, 2, 1, 3, 2)  # 0-3 3-5 5-6 6-9 9-11
    assert token_ranges(starts, ends, [(0, 5), (5, 11)]) == [(0, 2), (2, 5)]
    assert token_ranges(starts, ends, [(0, 7), (7, 11)]) == [(0, 3), (3, 5)]
    assert token_ranges(starts, ends, [(3, 5), (6, 9)]) == [(1, 3), (3, 4)]  # 5-6 closes the step before it
    assert token_ranges(starts, ends, [(0, 5), (5, 10)]) == [(0, 2), (2, 5)]  # 9-11 begins in the last step
    assert token_ranges(starts, ends, [(0, 1), (1, 11)]) == [(0, 0), (0, 5)]
    assert token_ranges(starts, ends, []) == []


@pytest.mark.parametrize("steps", [[(5, 9), (0, 5)], [(0, 6), (5, 9)], [(4, 2)]])
def test_steps_out_of_order_are_refused(steps: list[tuple[int, int]]) -> None:
    with pytest.raises(ValueError, match="in order"):
        token_ranges(*pieces(3, 3, 3), steps)


def test_curves_worked_by_hand() -> None:
    starts, ends = pieces(2, 4, 4, 4, 5)
    scores = TokenScores(
        token_ids=np.zeros(5, dtype=np.int32),
        starts=starts,
        ends=ends,
        ranks=np.array([9, 1, 500, 3, 9], dtype=np.int32),
        logprobs=np.array([-9, -1, -3, -5, -9], dtype=np.float32),
        entropies=np.array([9, 0.5, 1.5, 4, 9], dtype=np.float32),
        body_start=2,
    )
    curves = step_curves(scores, [(0, 8), (8, 9), (9, 12)])
    assert curves.tokens.tolist() == [2, 0, 1]
    np.testing.assert_array_equal(curves.surprisal, [2, np.nan, 5])
    np.testing.assert_array_equal(curves.entropy, [2, np.nan, 4])
    np.testing.assert_array_equal(curves.first_surprisal, [1, np.nan, 5])
    np.testing.assert_array_equal(curves.clipped_rank, [50.5, np.nan, 3])


@pytest.mark.parametrize("granularity", list(Granularity))
def test_the_steps_of_pruning_hold_every_token_of_the_reasoning_once(smollm: Student, granularity: Granularity) -> None:
    rendered = smollm.render("How much is half of 84?", REASONING, "\\boxed{42}")
    [scores] = smollm.score([rendered])
    steps = [(step.start, step.end) for step in segment(REASONING, granularity)]
    ranges = token_ranges(scores.starts - scores.body_start, scores.ends - scores.body_start, steps)
    held = [index for first, stop in ranges for index in range(first, stop)]
    assert held == list(range(held[0], held[-1] + 1))
    text = smollm.tokenizer.decode(scores.token_ids[held].tolist())
    assert text.strip() == REASONING
    curves = step_curves(scores, steps)
    whole = -scores.logprobs[held].astype(np.float64).sum()
    assert np.nansum(curves.surprisal * curves.tokens) == pytest.approx(whole)
    assert len(curves.tokens) == len(steps)


def test_the_columns_of_steps_say_which_way_is_better() -> None:
    assert {one.name: one.direction for one in step_columns("s")} == {"s/steps": "", "s/step_surprisal": "lower"}
