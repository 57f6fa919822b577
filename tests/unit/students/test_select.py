from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tracefactory.filters.testing import make_trace
from tracefactory.students.select import best_per_problem, by_measure

from tracefactory.core.rows import Trace


def trace(trace_id: str, question: str, value: float | None) -> Trace:
    return make_trace(id=trace_id, question=question, measures={} if value is None else {"s/rank_surprisal": value})


VALUE = by_measure("s/rank_surprisal")


def test_the_best_of_each_problem_are_kept_in_the_order_given() -> None:
    traces = [trace("a", "q", 3), trace("b", "q", 1), trace("c", "r", 9), trace("d", "q", 2), trace("e", "q", None)]
    lowest = best_per_problem(traces, VALUE, 2, "lowest")
    assert [kept.id for kept in lowest.kept] == ["b", "c", "d"]
    assert [(row.trace.id, row.reason, row.detail) for row in lowest.dropped] == [
        ("a", "not_among_best", "3 is place 3 of 3"),
        ("e", "not_measured", "the measure to select by is missing"),
    ]
    assert [kept.id for kept in best_per_problem(traces, VALUE, 1, "highest").kept] == ["a", "c"]


def test_an_unmeasured_trace_is_not_selected_even_when_there_is_room() -> None:
    selection = best_per_problem([trace("a", "q", float("nan")), trace("b", "q", None)], VALUE, 5, "lowest")
    assert selection.kept == ()
    assert {row.reason for row in selection.dropped} == {"not_measured"}


def test_ties_go_to_the_smaller_id_either_way() -> None:
    tied = [trace(name, "q", 1.0) for name in "cab"]
    assert [kept.id for kept in best_per_problem(tied, VALUE, 1, "lowest").kept] == ["a"]
    assert [kept.id for kept in best_per_problem(tied, VALUE, 1, "highest").kept] == ["a"]


@given(
    rows=st.lists(st.tuples(st.sampled_from("qrs"), st.sampled_from([None, 0.0, 1.0, 2.0])), max_size=12),
    count=st.integers(1, 3),
    best=st.sampled_from(["lowest", "highest"]),
    seed=st.integers(0, 99),
)
def test_no_row_is_lost_and_the_order_of_rows_does_not_matter(
    rows: list[tuple[str, float | None]], count: int, best: str, seed: int
) -> None:
    traces = [trace(f"{index:02}", question, value) for index, (question, value) in enumerate(rows)]
    selection = best_per_problem(traces, VALUE, count, best)  # type: ignore[arg-type]
    kept = {row.id for row in selection.kept}
    assert kept | {row.trace.id for row in selection.dropped} == {row.id for row in traces}
    assert len(selection.kept) + len(selection.dropped) == len(traces)
    for question in "qrs":
        measured = [index for index, (asked, value) in enumerate(rows) if asked == question and value is not None]
        assert sum(f"{index:02}" in kept for index in measured) == min(count, len(measured))
    shuffled = random.Random(seed).sample(traces, len(traces))
    assert {row.id for row in best_per_problem(shuffled, VALUE, count, best).kept} == kept  # type: ignore[arg-type]


def test_none_per_problem_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        best_per_problem([], VALUE, 0, "lowest")
