"""Mixing: exact shares, each problem once, a reason for every trace left out, and no silent shortfall."""

from __future__ import annotations

from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tracefactory.core.fingerprint import digest
from tracefactory.core.stage import Decided
from tracefactory.stages.mix.long_short import MixParams, mix


def row_id(name: str) -> str:
    return digest(name)[:16]


def frame(rows: list[tuple[str, str, int, str]]) -> pl.DataFrame:
    """Rows of (problem, style, tokens, outcome); ids are made from their places."""
    columns: dict[str, list[Any]] = {
        "problem_id": [row_id(row[0]) for row in rows],
        "id": [row_id(f"t{number}") for number in range(len(rows))],
        "style": [row[1] for row in rows],
        "tokens": [row[2] for row in rows],
        "outcome": [row[3] for row in rows],
    }
    types = {"problem_id": pl.String, "id": pl.String, "style": pl.String, "tokens": pl.Int64, "outcome": pl.String}
    return pl.DataFrame(columns, schema=types)


def solved_by_both(problems: int) -> pl.DataFrame:
    return frame(
        [
            (f"p{n}", style, tokens, "correct")
            for n in range(problems)
            for style, tokens in (("long", 100), ("short", 10))
        ]
    )


def kept(mixed: Decided) -> set[str]:
    return set(mixed.frame.filter("kept")["id"])


def chosen(mixed: Decided, traces: pl.DataFrame) -> pl.DataFrame:
    return traces.filter(pl.col("id").is_in(kept(mixed)))


ROWS = st.lists(
    st.tuples(
        st.sampled_from([f"p{n}" for n in range(8)]),
        st.sampled_from(["long", "short", "judge"]),
        st.integers(1, 500),
        st.sampled_from(["correct", "incorrect", "unverifiable", "verifier_error"]),
    ),
    max_size=60,
)


@given(ROWS, st.floats(0, 1), st.integers(0, 3), st.sampled_from(["problems", "tokens"]), st.integers(1, 9) | st.none())
def test_every_trace_is_chosen_or_has_a_reason(
    rows: list[tuple[str, str, int, str]], long: float, seed: int, unit: Any, size: int | None
) -> None:
    traces = frame(rows)
    mixed = mix(traces, MixParams(long=long, short=1 - long, seed=seed, unit=unit, size=size))
    assert mixed.frame.select("problem_id", "id").equals(traces.select("problem_id", "id"))
    assert mixed.frame["kept"].equals(mixed.frame["reason"].is_null(), check_names=False)
    picked = chosen(mixed, traces)
    assert picked["problem_id"].n_unique() == picked.height  # each problem once
    assert set(picked["outcome"]) <= {"correct"}
    solved = traces.filter(pl.col("outcome") == "correct")
    both = set(solved.filter(pl.col("style") == "long")["problem_id"]) & set(
        solved.filter(pl.col("style") == "short")["problem_id"]
    )
    assert picked.height == min(len(both), size or len(both))


@pytest.mark.parametrize(
    ("problems", "long", "expected"), [(100, 0.2, 20), (7, 0.2, 1), (8, 0.2, 2), (10, 0.0, 0), (10, 1.0, 10)]
)
def test_the_share_is_exact(problems: int, long: float, expected: int) -> None:
    traces = solved_by_both(problems)
    picked = chosen(mix(traces, MixParams(long=long, short=1 - long)), traces)
    assert picked.filter(pl.col("style") == "long").height == expected
    assert picked.height == problems


def test_a_share_of_tokens() -> None:
    traces = solved_by_both(1000)  # a long trace has ten times the tokens of a short one
    picked = chosen(mix(traces, MixParams(unit="tokens")), traces)
    long = picked.filter(pl.col("style") == "long")["tokens"].sum()
    assert abs(long / picked["tokens"].sum() - 0.2) < 0.005


def test_another_seed_draws_other_problems_and_the_same_seed_the_same() -> None:
    traces = solved_by_both(100)
    draws = [kept(mix(traces, MixParams(seed=seed))) for seed in (1, 1, 2)]
    assert draws[0] == draws[1] != draws[2]


def test_more_problems_move_few_others() -> None:
    before = mix(solved_by_both(100), MixParams(seed=5))
    after = mix(solved_by_both(110), MixParams(seed=5))
    assert len(kept(before) - kept(after)) <= 10


def test_a_shortfall_is_said() -> None:
    traces = frame([("a", "long", 9, "correct"), ("a", "short", 3, "correct"), ("b", "long", 9, "correct")])
    mixed = mix(traces, MixParams(size=5))
    assert "shortfall: asked for 5 problems, 4 too few were solved by both styles" in mixed.notes
    assert mixed.frame["reason"][2] == "only_long_solved"


def test_problems_beyond_the_size_are_told_from_those_drawn_in_the_other_style() -> None:
    traces = solved_by_both(10)
    mixed = mix(traces, MixParams(long=0.5, short=0.5, size=4))
    reasons = mixed.frame.group_by("problem_id").agg(pl.col("reason").unique())
    in_the_mix = [found for found in reasons["reason"].to_list() if None in found]
    left_out = [found for found in reasons["reason"].to_list() if None not in found]
    assert (len(in_the_mix), len(left_out)) == (4, 6)
    assert all(found == ["over_size"] for found in left_out)
    drawn = mixed.frame.filter(pl.col("reason").is_in(["drawn_long", "drawn_short"])).join(traces, on="id")
    assert sorted(drawn.select("reason", "style").rows()) == 2 * [("drawn_long", "short")] + 2 * [
        ("drawn_short", "long")
    ]


def test_an_answer_that_is_not_right_is_said_to_be_so_whatever_its_style_lacks() -> None:
    rows = [("a", "long", 9, "correct"), ("a", "short", 3, "incorrect"), ("a", "judge", 3, "correct")]
    assert mix(frame(rows), MixParams()).frame["reason"].to_list() == ["only_long_solved", "not_correct", "other_style"]


def test_nothing_to_mix_is_said() -> None:
    assert "shortfall: no problem was solved by both styles, so the mix is empty" in mix(frame([]), MixParams()).notes


@pytest.mark.parametrize(("pick", "tokens"), [("shortest", 10), ("longest", 30)])
def test_which_trace_stands_for_a_problem(pick: Any, tokens: int) -> None:
    rows = [("a", style, size, "correct") for style in ("long", "short") for size in (20, 10, 30)]
    traces = frame(rows)
    assert chosen(mix(traces, MixParams(pick=pick)), traces)["tokens"].to_list() == [tokens]
