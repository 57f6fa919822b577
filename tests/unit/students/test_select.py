from __future__ import annotations

import random

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from tracefactory.stages._best import best_of_each
from tracefactory.stages.select.best import SelectParams


def frame(*rows: tuple[str, str, float | None]) -> pl.DataFrame:
    """Rows of (id, problem, value)."""
    types = {"id": pl.String, "problem_id": pl.String, "value": pl.Float64}
    return pl.DataFrame(list(rows), schema=types, orient="row")


def kept(decided: pl.DataFrame) -> list[str]:
    return decided.filter("kept")["id"].to_list()


def test_the_best_of_each_problem_are_kept_in_the_order_given() -> None:
    rows = frame(("a", "q", 3), ("b", "q", 1), ("c", "r", 9), ("d", "q", 2), ("e", "q", None))
    lowest = best_of_each(rows, "value", 2, "lowest")
    assert lowest["id"].to_list() == ["a", "b", "c", "d", "e"]
    assert kept(lowest) == ["b", "c", "d"]
    assert lowest.filter(~pl.col("kept")).select("id", "reason", "detail").rows() == [
        ("a", "not_among_best", "3.0 is place 3 of 3"),
        ("e", "not_measured", "the row has no such value"),
    ]
    assert lowest.filter("kept").select("reason", "detail").unique().rows() == [(None, None)]
    assert kept(best_of_each(rows, "value", 1, "highest")) == ["a", "c"]


def test_an_unmeasured_trace_is_not_selected_even_when_there_is_room() -> None:
    decided = best_of_each(frame(("a", "q", float("nan")), ("b", "q", None)), "value", 5, "lowest")
    assert kept(decided) == []
    assert set(decided["reason"]) == {"not_measured"}


def test_ties_go_to_the_smaller_id_either_way() -> None:
    tied = frame(*((name, "q", 1.0) for name in "cab"))
    assert kept(best_of_each(tied, "value", 1, "lowest")) == ["a"]
    assert kept(best_of_each(tied, "value", 1, "highest")) == ["a"]


@given(
    rows=st.lists(st.tuples(st.sampled_from("qrs"), st.sampled_from([None, 0.0, 1.0, 2.0])), max_size=12),
    count=st.integers(1, 3),
    best=st.sampled_from(["lowest", "highest"]),
    seed=st.integers(0, 99),
)
def test_no_row_is_lost_and_the_order_of_rows_does_not_matter(
    rows: list[tuple[str, float | None]], count: int, best: str, seed: int
) -> None:
    traces = [(f"{index:02}", question, value) for index, (question, value) in enumerate(rows)]
    decided = best_of_each(frame(*traces), "value", count, best)  # type: ignore[arg-type]
    assert decided["id"].to_list() == [row_id for row_id, _, _ in traces]
    assert decided["kept"].null_count() == 0
    assert decided["kept"].equals(decided["reason"].is_null(), check_names=False)
    found = set(kept(decided))
    for question in "qrs":
        measured = [index for index, (asked, value) in enumerate(rows) if asked == question and value is not None]
        assert sum(f"{index:02}" in found for index in measured) == min(count, len(measured))
    shuffled = random.Random(seed).sample(traces, len(traces))
    assert set(kept(best_of_each(frame(*shuffled), "value", count, best))) == found  # type: ignore[arg-type]


def test_selecting_zero_traces_per_problem_is_refused() -> None:
    with pytest.raises(ValidationError, match="greater than or equal to 1"):
        SelectParams(measure="s/rank_surprisal", best="lowest", n=0)
