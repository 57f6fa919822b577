from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from tracefactory.filters import Decision, FilterSet, load_filters
from tracefactory.testing import make_trace

FILTERS = next(parent / "filters" for parent in Path(__file__).parents if (parent / "pyproject.toml").exists())


@pytest.fixture(scope="module")
def filters() -> FilterSet:
    return load_filters(FILTERS)


def reason(filters: FilterSet, name: str, measures: dict[str, float], **params: Any) -> str | None:
    found = filters[name]
    trace = make_trace(teacher="big", measures=measures)
    decision: Decision = found.decide(trace, found.params_model.model_validate(params))
    return decision.reason


BANDS = [
    ("student_surprise", "small/mean_surprisal", "too_expected", "too_surprising"),
    ("rank_surprisal", "small/rank_surprisal", "rank_surprisal_too_low", "rank_surprisal_too_high"),
    ("local_naturalness", "small/local_naturalness_w4", "locally_unnatural", "locally_too_natural"),
    ("student_tokens", "small/tokens", "too_short", "too_long"),
]


@pytest.mark.parametrize(("name", "measure", "low", "high"), BANDS)
def test_a_band_keeps_its_bounds_and_names_the_side(
    filters: FilterSet, name: str, measure: str, low: str, high: str
) -> None:
    params: dict[str, Any] = {"student": "small", "min": 1.0, "max": 2.0}
    found = [reason(filters, name, {measure: value}, **params) for value in (0.9, 1.0, 1.5, 2.0, 2.1)]
    assert found == [low, None, None, None, high]
    assert reason(filters, name, {measure: 99.0}, student="small", min=1.0) is None
    assert reason(filters, name, {measure.replace("small", "other"): 1.5}, **params) == "not_measured"


@pytest.mark.parametrize("params", [{}, {"min": 2.0, "max": 1.0}])
@pytest.mark.parametrize("name", [*(band[0] for band in BANDS), "pass_rate"])
def test_a_band_that_keeps_all_or_nothing_is_a_mistake(filters: FilterSet, name: str, params: dict[str, float]) -> None:
    student = {} if name == "pass_rate" else {"student": "small"}
    with pytest.raises(ValidationError, match=r"at least one of min, max|above the maximum"):
        filters[name].params_model.model_validate({**student, **params})


def test_local_naturalness_reads_the_window_it_is_given(filters: FilterSet) -> None:
    measures = {"small/local_naturalness_w2": -3.0, "small/local_naturalness_w4": -1.0}
    assert reason(filters, "local_naturalness", measures, student="small", min=-2.0) is None
    assert reason(filters, "local_naturalness", measures, student="small", min=-2.0, window=2) == "locally_unnatural"


def test_reverse_speculative_decides_at_the_cut_offs_it_is_given(filters: FilterSet) -> None:
    measures = {"small/acceptance_p0.01_top20": 0.6, "small/acceptance_p0.05_top5": 0.4}
    assert reason(filters, "reverse_speculative", measures, student="small") is None
    assert reason(filters, "reverse_speculative", measures, student="small", min_accepted=0.6) is None
    assert reason(filters, "reverse_speculative", measures, student="small", min_accepted=0.61) == "too_few_accepted"
    assert reason(filters, "reverse_speculative", measures, student="small", p=0.05, top_k=5) == "too_few_accepted"
    assert reason(filters, "reverse_speculative", measures, student="small", top_k=10) == "not_measured"


def test_pass_rate_is_of_the_teacher_unless_a_model_is_named(filters: FilterSet) -> None:
    measures = {"pass_rate": 1.0, "big/pass_rate": 1.0, "small/pass_rate": 0.0}
    assert reason(filters, "pass_rate", measures, max=0.9) == "too_easy"
    assert reason(filters, "pass_rate", measures, model="small", max=0.9) is None
    assert reason(filters, "pass_rate", measures, model="small", min=0.1) == "too_hard"
    assert reason(filters, "pass_rate", {}, max=0.9) == "not_measured"
