"""Mixing: exact shares of any groups, each problem once, a reason for every trace left out, no silent shortfall."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.stages.conftest import RunStages
from tracefactory.core.errors import UserError
from tracefactory.core.fingerprint import digest
from tracefactory.core.stage import Decided
from tracefactory.stages.mix._shares import Draw, Unit, draw
from tracefactory.stages.mix.long_short import MixParams, mix


def row_id(name: str) -> str:
    return digest(name)[:16]


def frame(rows: list[tuple[str, str, int, str]]) -> pl.DataFrame:
    """Rows of (problem, group, tokens, outcome); ids are made from their places."""
    columns: dict[str, list[Any]] = {
        "problem_id": [row_id(row[0]) for row in rows],
        "id": [row_id(f"t{number}") for number in range(len(rows))],
        "group": [row[1] for row in rows],
        "tokens": [row[2] for row in rows],
        "outcome": [row[3] for row in rows],
    }
    types = {"problem_id": pl.String, "id": pl.String, "group": pl.String, "tokens": pl.Int64, "outcome": pl.String}
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
    both = set(solved.filter(pl.col("group") == "long")["problem_id"]) & set(
        solved.filter(pl.col("group") == "short")["problem_id"]
    )
    assert picked.height == min(len(both), size or len(both))


@pytest.mark.parametrize(
    ("problems", "long", "expected"), [(100, 0.2, 20), (7, 0.2, 1), (8, 0.2, 2), (10, 0.0, 0), (10, 1.0, 10)]
)
def test_the_share_is_exact(problems: int, long: float, expected: int) -> None:
    traces = solved_by_both(problems)
    picked = chosen(mix(traces, MixParams(long=long, short=1 - long)), traces)
    assert picked.filter(pl.col("group") == "long").height == expected
    assert picked.height == problems


def test_a_share_of_tokens() -> None:
    traces = solved_by_both(1000)  # a long trace has ten times the tokens of a short one
    picked = chosen(mix(traces, MixParams(unit="tokens")), traces)
    long = picked.filter(pl.col("group") == "long")["tokens"].sum()
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
    assert sorted(drawn.select("reason", "group").rows()) == 2 * [("drawn_long", "short")] + 2 * [
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


GROUPS = st.lists(st.sampled_from(["7b", "32b", "72b", "Qwen/x"]), min_size=1, unique=True)
MIXED = st.lists(
    st.tuples(
        st.sampled_from([f"p{n}" for n in range(8)]),
        st.sampled_from(["7b", "32b", "72b", "Qwen/x", "other"]),
        st.integers(1, 500),
        st.sampled_from(["correct", "correct", "incorrect"]),
    ),
    max_size=80,
)


@given(MIXED, GROUPS, st.data(), st.sampled_from(list(Unit)), st.integers(1, 9) | st.none())
def test_any_groups_are_mixed_whole_and_by_their_shares(
    rows: list[tuple[str, str, int, str]], groups: list[str], data: st.DataObject, unit: Unit, size: int | None
) -> None:
    weights = [data.draw(st.integers(0, 5)) for _ in groups]
    total = sum(weights) or len(groups)
    shares = {group: (weight if sum(weights) else 1) / total for group, weight in zip(groups, weights, strict=True)}
    traces = frame(rows)
    wanted = Draw("teacher", shares, unit, size, "drawn", 4)
    mixed = draw(traces, wanted)
    assert mixed.frame.select("problem_id", "id").equals(traces.select("problem_id", "id"))
    assert mixed.frame["kept"].equals(mixed.frame["reason"].is_null(), check_names=False)
    assert all(re.fullmatch("[a-z0-9_]+", reason) for reason in mixed.frame["reason"].drop_nulls())
    picked = chosen(mixed, traces)
    assert picked["problem_id"].n_unique() == picked.height  # each problem once
    assert set(picked["group"]) <= shares.keys()
    solved = traces.filter(pl.col("outcome") == "correct")
    by_group = [set(solved.filter(pl.col("group") == group)["problem_id"]) for group in groups]
    by_all = set.intersection(*by_group)
    assert picked.height == min(len(by_all), size or len(by_all))
    if unit is Unit.PROBLEMS:
        for group, share in shares.items():
            assert abs(picked.filter(pl.col("group") == group).height - share * picked.height) <= 1
    shuffled = traces.sample(fraction=1, shuffle=True, seed=3) if traces.height else traces
    backwards = {group: shares[group] for group in reversed(groups)}
    assert kept(draw(shuffled, wanted._replace(shares=backwards))) == kept(mixed)


def of_three(problems: int) -> pl.DataFrame:
    sizes = {"large": 400, "middle": 90, "small": 20}
    return frame([(f"p{n}", name, size + n % 7, "correct") for n in range(problems) for name, size in sizes.items()])


def test_three_groups_get_their_shares_of_problems_or_tokens() -> None:
    traces, shares = of_three(2000), {"small": 0.5, "large": 0.2, "middle": 0.3}
    picked = chosen(draw(traces, Draw("teacher", shares)), traces)
    assert dict(picked["group"].value_counts().iter_rows()) == {"large": 400, "middle": 600, "small": 1000}
    mixed = draw(traces, Draw("teacher", shares, Unit.TOKENS))
    tokens = chosen(mixed, traces).group_by("group").agg(pl.col("tokens").sum())
    found = dict(tokens.iter_rows())
    assert sum(found.values()) > 0
    for name, share in shares.items():
        assert found[name] / sum(found.values()) == pytest.approx(share, abs=0.005)
    assert "solved by all 3 teachers 2000" in mixed.notes[0]


# Problems that only some groups solved.


@settings(deadline=None)  # the machine may be busy
@given(MIXED, GROUPS, st.data(), st.sampled_from(list(Unit)), st.integers(1, 9) | st.none())
def test_with_any_every_solved_problem_is_mixed_once_with_a_trace_that_is_right(
    rows: list[tuple[str, str, int, str]], groups: list[str], data: st.DataObject, unit: Unit, size: int | None
) -> None:
    weights = [data.draw(st.integers(0, 5)) for _ in groups]
    total = sum(weights) or len(groups)
    shares = {group: (weight if sum(weights) else 1) / total for group, weight in zip(groups, weights, strict=True)}
    traces = frame(rows)
    mixed = draw(traces, Draw("teacher", shares, unit, size, "drawn", 4, "any"))
    assert mixed.frame.select("problem_id", "id").equals(traces.select("problem_id", "id"))
    assert mixed.frame["kept"].equals(mixed.frame["reason"].is_null(), check_names=False)
    picked = chosen(mixed, traces)
    assert picked["problem_id"].n_unique() == picked.height
    assert set(picked["outcome"]) <= {"correct"}
    solved = traces.filter(pl.col("outcome") == "correct", pl.col("group").is_in(groups))
    assert picked.height == min(solved["problem_id"].n_unique(), size or picked.height)
    assert mixed.numbers["mix_problems"] == picked.height
    assert mixed.numbers["mix_solved_by_all"] + mixed.numbers["mix_solved_by_some"] == solved["problem_id"].n_unique()
    if len(groups) == 2 and unit is Unit.PROBLEMS and size is None:  # as near to the share as can be
        first, second = sorted(groups)
        by = [set(solved.filter(pl.col("group") == one)["problem_id"]) for one in (first, second)]
        least, most = len(by[0] - by[1]), len(by[0])
        got = picked.filter(pl.col("group") == first).height
        assert abs(got - min(max(shares[first] * picked.height, least), most)) <= 1


def lopsided() -> pl.DataFrame:
    """Ten problems: five solved by both, three by the long style alone, one by the short one alone, one by nobody."""
    by = {"long": (0, 1, 2, 3, 4, 5, 6, 7), "short": (0, 1, 2, 3, 4, 8)}
    right = [(f"p{n}", style, 50 if style == "long" else 10, "correct") for style, those in by.items() for n in those]
    return frame([*right, ("p9", "long", 50, "incorrect")])


@pytest.mark.parametrize(("long", "expected"), [(0.2, 3), (0.5, 5), (0.8, 7), (1.0, 8)])
def test_what_one_style_alone_solved_is_left_out_or_taken_and_the_others_even_out(long: float, expected: int) -> None:
    traces = lopsided()
    strict = mix(traces, MixParams(long=long, short=1 - long))
    assert chosen(strict, traces).height == 5
    assert "mix: `problems: all`: the 4 that only some styles solved are left out" in strict.notes
    loose = mix(traces, MixParams(long=long, short=1 - long, problems="any"))
    picked = chosen(loose, traces)
    assert picked.height == 9
    assert picked.filter(pl.col("group") == "long").height == expected
    assert "mix: `problems: any`: the 4 that only some styles solved can only have their traces" in loose.notes
    assert "only_long_solved" not in set(loose.frame["reason"])
    assert loose.numbers == {"mix_problems": 9.0, "mix_solved_by_all": 5.0, "mix_solved_by_some": 4.0}


def test_a_share_of_tokens_counts_what_only_one_style_solved() -> None:
    both = solved_by_both(400)
    alone = frame([(f"alone{n}", "long", 100, "correct") for n in range(10)])
    traces = pl.concat([both, alone.with_columns(id=pl.Series([row_id(f"a{n}") for n in range(10)]))])
    picked = chosen(mix(traces, MixParams(long=0.5, short=0.5, unit="tokens", problems="any")), traces)
    long = picked.filter(pl.col("group") == "long")["tokens"].sum()
    assert picked.height == 410
    assert long / picked["tokens"].sum() == pytest.approx(0.5, abs=0.01)


def test_one_group_alone_and_a_group_that_nobody_is_in() -> None:
    traces = of_three(10)
    alone = draw(traces, Draw("teacher", {"small": 1.0}, size=4))
    assert chosen(alone, traces)["group"].to_list() == ["small"] * 4
    assert set(alone.frame["reason"].drop_nulls()) == {"other_group", "over_size"}
    missing = draw(traces, Draw("teacher", {"small": 0.5, "huge": 0.5}))
    assert not kept(missing)
    assert "shortfall: no problem was solved by both teachers, so the mix is empty" in missing.notes
    assert "only_small_solved" in set(missing.frame["reason"])
    none = draw(traces, Draw("teacher", {"small": 1.0, "large": 0.0}))
    assert set(chosen(none, traces)["group"]) == {"small"}
    without = traces.with_columns(group=pl.lit(None, pl.String))
    assert set(draw(without, Draw("teacher", {"small": 1.0})).frame["reason"]) == {"other_group"}


def test_long_and_short_are_two_groups_like_any_others() -> None:
    traces = solved_by_both(100)
    both = mix(traces, MixParams(seed=5)), draw(traces, Draw("style", {"short": 0.8, "long": 0.2}, seed=5))
    assert both[0].frame.equals(both[1].frame)


def test_hundreds_of_thousands_of_traces_are_mixed_in_seconds() -> None:
    many = np.arange(300_000, dtype=np.uint64)
    ids = [f"{number:016x}" for number in (many * np.uint64(0x9E3779B97F4A7C15)).tolist()]
    groups = ["large", "middle", "small"]
    traces = pl.DataFrame(
        {
            "problem_id": [ids[number - number % 3] for number in range(len(ids))],
            "id": ids,
            "group": [groups[number % 3] for number in range(len(ids))],
            "tokens": (many % np.uint64(900)).astype(np.int64) + 1,
            "outcome": ["correct"] * len(ids),
        }
    )
    shares = {"large": 0.2, "middle": 0.3, "small": 0.5}
    started = time.process_time()
    mixed = draw(traces, Draw("teacher", shares, Unit.TOKENS))
    assert time.process_time() - started < 6
    assert mixed.frame["kept"].sum() == 100_000


STAGES = """\
  - {id: problems, source: files, with: {paths: problems.jsonl, question: q, answer: a}}
  - {id: big, sample: chat, from: problems, with: {model: large, prompt: math_short, samples: 1}}
  - {id: little, sample: chat, from: problems, with: {model: small, prompt: math_short, samples: 1}}
  - {id: checked, verify: auto, from: [big, little]}
  - {id: mixed, mix: shares, with: {by: BY, shares: SHARES}}
  - {id: dataset, publish: dataset, with: {views: [sft, raw]}}
"""
PROBLEMS = "".join(json.dumps({"q": f"What is {n} + 1?", "a": str(n + 1)}) + "\n" for n in range(20))


async def test_teachers_of_one_style_are_mixed_and_the_card_counts_them(run_stages: RunStages, tmp_path: Path) -> None:
    stages = STAGES.replace("BY", "teacher").replace("SHARES", "{large: 0.2, small: 0.8}")
    made = await run_stages(stages, PROBLEMS, large={}, small={"seed": 1})
    published = made.traces("dataset")
    assert sorted(trace.teacher for trace in published) == ["large"] * 4 + ["small"] * 16
    assert {trace.style for trace in published} == {"short"}  # nobody had to call a small teacher short
    card = (tmp_path / "project" / "out" / "t" / "1" / "README.md").read_text()
    assert "| `mixed` | `large` | problems | 20.0% | 20.0% | 4 |" in card
    assert "| `mixed` | `small` | problems | 80.0% | 80.0% | 16 |" in card
    assert "solved by both teachers 20, only large 0, only small 0" in card
    again = await run_stages(
        stages.replace("{large: 0.2, small: 0.8}", "{small: 0.8, large: 0.2}"), PROBLEMS, large={}, small={"seed": 1}
    )
    assert again.stage("mixed").cached


async def test_the_card_says_what_became_of_problems_that_one_teacher_alone_solved(
    run_stages: RunStages, tmp_path: Path
) -> None:
    stages = STAGES.replace("BY", "teacher").replace("SHARES", "{large: 0.2, small: 0.8}, problems: any")
    made = await run_stages(stages, PROBLEMS, large={}, small={"accuracy": 0.3, "seed": 1})
    published, numbers = made.traces("dataset"), made.stage("mixed").tally.numbers
    alone = int(numbers["mix_solved_by_some"])
    assert (len(published), numbers["mix_problems"]) == (20, 20.0)
    assert alone > 4  # more than the share of the large teacher
    assert sum(trace.teacher == "large" for trace in published) == alone
    card = (tmp_path / "project" / "out" / "t" / "1" / "README.md").read_text()
    assert f"the {alone} that only some teachers solved can only have their traces" in card
    assert f"| `mixed` | `large` | problems | 20.0% | {alone / 20:.1%} | {alone} |" in card


@pytest.mark.parametrize(
    ("by", "shares", "message"),
    [
        ("teacher", "{large: 0.2, smal: 0.8}", "shares: no stage above makes traces with teacher 'smal'.*'small'"),
        ("teacher", "{large: 0.5, small: 0.6}", "add up to 1, not 1.1"),
        ("teacher", "{large: 1.5, small: -0.5}", "small is negative"),
        ("teacher", "{}", "shares"),
        ("stage", "{big: 0.5, small: 0.5}", "stage 'small'"),
        ("tacher", "{large: 0.2, small: 0.8}", "by: .*tacher.*teacher"),
        ("parents", "{large: 0.2, small: 0.8}", "no single value"),
    ],
)
async def test_groups_that_cannot_be_are_refused(run_stages: RunStages, by: str, shares: str, message: str) -> None:
    with pytest.raises(UserError, match=f"t.yaml:.*{message}"):
        await run_stages(STAGES.replace("BY", by).replace("SHARES", shares), PROBLEMS, large={}, small={})
