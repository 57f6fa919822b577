from __future__ import annotations

import io
import random

import pytest
from rich.console import Console

from tracefactory.cli.teachers import Ranking, _table
from tracefactory.core.rows import Outcome, Trace
from tracefactory.students.measures import dataset_rank_surprisal
from tracefactory.students.ranking import RankBy, TeacherTrial, rank_teachers, remarks
from tracefactory.testing import make_trace


def trace(question: str, rank: float, surprisal: float, outcome: Outcome = Outcome.CORRECT, cost: float = 0.0) -> Trace:
    measures = {"s/mean_clipped_rank": rank, "s/mean_surprisal": surprisal, "s/tokens": 10.0 * rank}
    return make_trace(
        question=question, answer_text=f"{rank} {surprisal}", outcome=outcome, measures=measures, cost=cost
    )


def tried(name: str, traces: list[Trace], *, failed: int = 0, priced: bool = False, lost: int = 0) -> TeacherTrial:
    return TeacherTrial(
        teacher=name,
        model=f"{name}.gguf",
        stage=f"from-{name}",
        prompt="p",
        priced=priced,
        samples=len(traces) + failed,
        failed=failed,
        verified=traces,
        measured=traces[lost:],
    )


def noisy(seed: int, centre: float, problems: int = 40) -> list[Trace]:
    rng = random.Random(seed)
    return [trace(f"q{n}", centre * rng.uniform(0.8, 1.2), rng.uniform(0.8, 1.2)) for n in range(problems)]


def test_the_value_of_a_teacher_is_measured_over_its_correct_traces() -> None:
    traces = [trace("a", 2.0, 1.0), trace("b", 8.0, 2.0), trace("c", 90.0, 0.1, Outcome.INCORRECT)]
    (row,) = rank_teachers([tried("t", traces)], "s")
    assert row.value == pytest.approx(dataset_rank_surprisal([(2.0, 1.0), (8.0, 2.0)]))
    assert (row.used, row.passed.passes, row.passed.samples) == (2, 2, 3)
    assert row.student_tokens == 50.0
    (every,) = rank_teachers([tried("t", traces)], "s", every=True)
    assert every.value == pytest.approx(100 / 3.1)


def test_the_lowest_ratio_ranks_first_and_is_inside_its_interval() -> None:
    rows = rank_teachers([tried("bad", noisy(1, 4.0)), tried("good", noisy(2, 2.0))], "s")
    assert [row.teacher for row in rows] == ["good", "bad"]
    for row in rows:
        assert row.value is not None
        assert row.low is not None
        assert row.high is not None
        assert row.low < row.value < row.high
        assert row.high - row.low < 0.5
    assert [row.first for row in rows] == [1.0, 0.0]
    assert not any("not settled" in text for text in remarks(rows, RankBy.RANK_SURPRISAL))
    assert rank_teachers([tried("bad", noisy(1, 4.0)), tried("good", noisy(2, 2.0))], "s") == rows


def test_the_ranking_of_similar_teachers_is_not_settled() -> None:
    rows = rank_teachers([tried("one", noisy(1, 2.0)), tried("two", noisy(3, 2.0))], "s")
    assert sum(row.first for row in rows) == pytest.approx(1.0)
    assert 0.02 < rows[1].first < 0.5
    assert any("not settled: from-" in text for text in remarks(rows, RankBy.RANK_SURPRISAL))


def test_the_same_problems_are_drawn_for_all_teachers() -> None:
    """Where one teacher is better on every problem, no draw of problems may rank it second, however they differ."""
    hard = [trace(f"q{n}", 1.0 + n, 1.0) for n in range(30)]
    harder = [trace(f"q{n}", 1.1 * (1.0 + n), 1.0) for n in range(30)]
    rows = rank_teachers([tried("harder", harder), tried("hard", hard)], "s")
    assert rows[0].teacher == "hard"
    assert rows[0].first == 1.0
    assert rows[0].high is not None
    assert rows[1].low is not None
    assert rows[0].high > rows[1].low  # the intervals overlap all the same


def test_a_measure_with_direction_higher_ranks_the_highest_first() -> None:
    def accepted(name: str, share: float) -> TeacherTrial:
        measures = {"s/acceptance_p0.01_top20": share, "s/tokens": 5.0}
        return tried(name, [make_trace(question=f"q{n}", measures=measures) for n in range(3)])

    rows = rank_teachers([accepted("low", 0.7), accepted("high", 0.9)], "s", RankBy.ACCEPTANCE)
    assert [(row.teacher, row.value) for row in rows] == [("high", pytest.approx(0.9)), ("low", pytest.approx(0.7))]


def test_a_teacher_without_correct_traces_is_last_with_a_remark() -> None:
    wrong = [trace("a", 1.0, 1.0, Outcome.INCORRECT), trace("b", 1.0, 1.0, Outcome.UNVERIFIABLE)]
    rows = rank_teachers([tried("wrong", wrong), tried("right", [trace("a", 5.0, 1.0)])], "s")
    assert [(row.teacher, row.value) for row in rows] == [("right", 5.0), ("wrong", None)]
    assert rows[0].low is None  # one problem tells nothing about others
    assert "from-wrong: no correct trace, so it is not ranked" in remarks(rows, RankBy.RANK_SURPRISAL)
    assert any("without correct traces" in text for text in remarks(rows, RankBy.RANK_SURPRISAL, every=True))
    alone = remarks(rank_teachers([tried("wrong", wrong)], "s"), RankBy.RANK_SURPRISAL)
    assert any("--all" in text for text in alone)


def test_cost_per_usable_trace_counts_all_samples() -> None:
    traces = [trace(f"q{n}", 2.0, 1.0, outcome, 0.25) for n, outcome in enumerate(["correct", "incorrect", "correct"])]
    (row,) = rank_teachers([tried("t", traces, failed=2, priced=True, lost=1)], "s")
    assert (row.samples, row.failed, row.refused, row.unmeasured, row.used) == (5, 2, 0, 1, 1)
    assert (row.cost, row.cost_per_usable) == (0.75, 0.375)
    (free,) = rank_teachers([tried("t", traces)], "s")
    assert (free.cost, free.cost_per_usable) == (None, None)
    (none,) = rank_teachers([tried("t", traces[1:2], priced=True)], "s")
    assert (none.cost, none.cost_per_usable) == (0.25, None)


def test_a_teacher_without_traces_gets_a_row() -> None:
    (row,) = rank_teachers([tried("t", [], failed=3)], "s")
    assert (row.value, row.median_tokens, row.passed.samples, row.failed) == (None, None, 0, 3)


def test_the_table_cuts_off_no_number_at_80_columns() -> None:
    good, spare = noisy(2, 2.0), [trace(f"q{n}", 4.0, 1.0, cost=0.5) for n in range(40)]
    rows = rank_teachers([tried("a_teacher_with_a_long_name", good, failed=12), tried("b", spare, priced=True)], "s")
    rows[0] = rows[0].model_copy(update={"total_tokens": 1_234_567, "samples": 1000, "used": 988})
    found = Ranking(
        student="pupil",
        model="pupil.gguf",
        by=RankBy.RANK_SURPRISAL,
        of="correct traces",
        run="r",
        problems=40,
        teachers=tuple(rows),
        remarks=(),
    )
    out = io.StringIO()
    Console(file=out, width=80).print(_table(found))
    shown = out.getvalue()
    assert "…" not in shown
    words = shown.split()
    for number in ("1", "2", "988/1000", "1,234,567", f"{rows[0].value:.3f}", f"{rows[0].low:.3f}-{rows[0].high:.3f}"):
        assert number in words
    assert "0.500000" in words
    assert {"failed", "12"} <= {*words}
