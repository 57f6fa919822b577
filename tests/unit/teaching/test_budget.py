"""Budgets: never less, at most one row more, whatever the order of the input."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from tracefactory.core.errors import UserError
from tracefactory.core.teach import TrainingBudget
from tracefactory.teaching.budget import order_of, plan_rows, write_plan
from tracefactory.teaching.encoding import SCHEMA, digest_of_rows


def table_of(tokens: list[int], per_problem: int = 2) -> pa.Table:
    rows = [
        {
            "id": f"r{number}",
            "problem_id": f"p{number // per_problem}",
            "input_ids": [1] * count,
            "labels": [1] * count,
            "tokens": count,
            "cut": number == 0,
            "answer_lost": False,
        }
        for number, count in enumerate(tokens)
    ]
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def ids_of(table: pa.Table, **budget: int) -> list[Any]:
    seed = budget.pop("seed", 0)
    return table["id"].take(pa.array(plan_rows(table, TrainingBudget(**budget), seed).order)).to_pylist()


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(1, 50), min_size=1, max_size=12),
    st.sampled_from(["tokens", "rows", "problems"]),
    st.integers(1, 120),
    st.integers(0, 3),
)
def test_the_budget_is_reached_and_passed_by_less_than_one_row(
    tokens: list[int], axis: str, amount: int, seed: int
) -> None:
    table = table_of(tokens)
    plan = plan_rows(table, TrainingBudget(**{axis: amount}), seed)
    taken, order = plan.taken, plan.order.tolist()
    assert taken.rows == len(order)
    assert taken.tokens == sum(tokens[number] for number in order)
    assert taken.distinct_rows == len(set(order))
    assert taken.cut == order.count(0)
    if axis == "tokens":
        assert taken.reached == taken.tokens >= amount
        assert taken.tokens - tokens[order[-1]] < amount
    else:
        assert taken.reached == amount
        assert axis == "problems" or taken.rows == amount
    if axis != "problems":  # each row as often as any other, but for the last epoch
        counts = [order.count(number) for number in range(len(tokens))]
        assert max(counts) - min(counts) <= 1
        assert max(counts) == taken.epochs
    reversed_table = table.sort_by([("id", "descending")])
    assert ids_of(table, **{axis: amount}, seed=seed) == ids_of(reversed_table, **{axis: amount}, seed=seed)


def test_problems_are_taken_with_all_of_their_rows() -> None:
    table = table_of([1] * 9, per_problem=3)
    plan = plan_rows(table, TrainingBudget(problems=2), 0)
    assert (plan.taken.rows, plan.taken.distinct_problems, plan.taken.epochs) == (6, 2, 1)
    again = plan_rows(table, TrainingBudget(problems=4), 0)
    assert (again.taken.rows, again.taken.distinct_problems, again.taken.epochs) == (12, 3, 2)


def test_the_order_is_another_for_another_seed_and_in_the_next_epoch() -> None:
    table = table_of([1] * 20)
    twice = ids_of(table, rows=40)
    assert sorted(twice[:20]) == sorted(twice[20:])
    assert twice[:20] != twice[20:]
    assert ids_of(table, rows=40, seed=1) != twice
    assert ids_of(table, rows=7) == twice[:7]


def test_one_huge_row_is_taken_once() -> None:
    plan = plan_rows(table_of([100_000]), TrainingBudget(tokens=1), 0)
    assert (plan.taken.reached, plan.taken.rows, plan.taken.epochs) == (100_000, 1, 1)


def test_what_cannot_be_planned_is_refused() -> None:
    with pytest.raises(UserError, match="no row"):
        plan_rows(table_of([]), TrainingBudget(rows=1), 0)
    with pytest.raises(UserError, match="'r0' is there twice"):
        plan_rows(pa.concat_tables([table_of([1]), table_of([1])]), TrainingBudget(rows=1), 0)
    with pytest.raises(UserError, match="no token in the loss"):
        plan_rows(table_of([3, 0]), TrainingBudget(rows=1), 0)
    with pytest.raises(UserError, match="more than 1000 times"):
        plan_rows(table_of([5]), TrainingBudget(tokens=10**15), 0)
    for given_axes in ({}, {"tokens": 1, "rows": 1}, {"tokens": 0}, {"problems": -1}):
        with pytest.raises(ValidationError):
            TrainingBudget(**given_axes)


def test_a_plan_is_written_with_each_row_once_and_read_in_its_order(tmp_path: Path) -> None:
    table = table_of([3, 4, 5, 6, 7])
    plan = plan_rows(table, TrainingBudget(rows=12), 2)
    file, digest = write_plan(tmp_path, table, plan)
    written = pq.read_table(file)
    assert digest_of_rows(written) == digest
    assert len(written) == 5
    wanted = table["id"].take(pa.array(plan.order)).to_pylist()
    assert written["id"].take(pa.array(order_of(written))).to_pylist() == wanted
    shuffled = table.sort_by([("id", "descending")])
    assert write_plan(tmp_path, shuffled, plan_rows(shuffled, TrainingBudget(rows=12), 2)) == (file, digest)
    with pytest.raises(ValueError, match="gaps or repeats"):
        order_of(written.slice(1))
