from __future__ import annotations

import math

import numpy as np
import pytest

from tracefactory.core.token_scores import TokenScores
from tracefactory.students.measures import (
    MeasureParams,
    acceptance,
    dataset_rank_surprisal,
    p_quantile,
    rank_surprisal,
    trace_measures,
)


def scores(p: list[float], ranks: list[int] | None = None, entropies: list[float] | None = None) -> TokenScores:
    size = len(p)
    edges = np.arange(size + 1, dtype=np.int32) * 2
    return TokenScores(
        token_ids=np.zeros(size, dtype=np.int32),
        starts=edges[:-1],
        ends=edges[1:],
        ranks=np.array(ranks or [1] * size, dtype=np.int32),
        logprobs=np.log(p).astype(np.float32),
        entropies=np.array(entropies or [0.0] * size, dtype=np.float32),
        body_start=4,
    )


def test_measures_of_a_trace_worked_by_hand() -> None:
    found = trace_measures(scores([0.5, 0.25, 0.001, 0.125], [1, 2, 900, 21], [1.0, 2.0, 3.0, 4.0]))
    surprisal = (math.log(2) + math.log(4) + math.log(1000) + math.log(8)) / 4
    assert found == pytest.approx(
        {
            "tokens": 4,
            "mean_surprisal": surprisal,
            "perplexity": (2 * 4 * 1000 * 8) ** 0.25,
            "mean_entropy": 2.5,
            "min_p": 0.001,
            "mean_clipped_rank": (1 + 2 + 100 + 21) / 4,
            "rank_surprisal": 124 / (4 * surprisal),
            "p_q0.01": 0.001,
            "p_q0.05": 0.001,
            "p_q0.1": 0.001,
            "share_below_p0.01": 0.25,
            "share_outside_top20": 0.5,
            "acceptance_p0.01_top20": 0.5,
        }
    )


def test_acceptance_requires_probability_and_rank() -> None:
    trace = scores([0.01, 0.01, 0.0099, 0.9], [20, 21, 3, 1])
    assert acceptance(trace) == 0.5
    assert acceptance(trace, p=0.001) == 0.75
    assert acceptance(trace, top_k=21) == 0.75
    assert trace_measures(trace)["share_below_p0.01"] == 0.25


def test_a_quantile_is_the_p_of_a_token() -> None:
    trace = scores([k / 100 for k in range(1, 101)])
    assert p_quantile(trace, 0.05) == pytest.approx(0.05)
    assert p_quantile(trace, 0.051) == pytest.approx(0.06)
    assert p_quantile(trace, 0.0) == pytest.approx(0.01)


def test_rank_surprisal_clips_ranks_and_sums_before_it_divides() -> None:
    assert rank_surprisal(scores([0.5, 1 / 8], [100, 1])) == rank_surprisal(scores([0.5, 1 / 8], [40_000, 1]))
    assert rank_surprisal(scores([0.5, 1 / 8], [7, 1])) == pytest.approx(8 / math.log(16))


def test_rank_surprisal_of_a_certain_trace_is_finite_and_worst() -> None:
    certain = rank_surprisal(scores([1.0, 1.0]))
    assert math.isfinite(certain)
    assert certain > rank_surprisal(scores([0.01], [100]))


def test_dataset_rank_surprisal_weighs_traces_and_not_tokens() -> None:
    short, long = scores([0.5], [10]), scores([0.25] * 99, [1] * 99)
    measured = [trace_measures(trace) for trace in (short, long)]
    found = dataset_rank_surprisal((m["mean_clipped_rank"], m["mean_surprisal"]) for m in measured)
    assert found == pytest.approx((10 + 1) / (math.log(2) + math.log(4)))
    with pytest.raises(ValueError, match="no traces"):
        dataset_rank_surprisal([])


def test_measures_use_the_given_cut_offs() -> None:
    params = MeasureParams(quantiles=(0.5,), below=(0.3, 0.6), top_k=(), acceptance=((0.3, 1), (0.3, 2)))
    found = trace_measures(scores([0.5, 0.5, 0.1], [1, 2, 3]), params)
    asked = {name: value for name, value in found.items() if any(digit in name for digit in "0123456789")}
    assert asked == pytest.approx(
        {
            "p_q0.5": 0.5,
            "share_below_p0.3": 1 / 3,
            "share_below_p0.6": 1.0,
            "acceptance_p0.3_top1": 1 / 3,
            "acceptance_p0.3_top2": 2 / 3,
        }
    )


def test_a_trace_without_tokens_has_no_measures() -> None:
    with pytest.raises(ValueError, match="no measures"):
        trace_measures(scores([]))
