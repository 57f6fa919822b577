"""The result of a comparison for people: tables for a terminal of 80 columns, sentences, and lines for cards."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import fmean

from rich.console import Group
from rich.table import Table
from rich.text import Text

from tracefactory.core.model import public_name
from tracefactory.engine.reporting.report import plain_table
from tracefactory.publish.taught import TaughtDataset, TaughtLine
from tracefactory.teaching.examination import Marks
from tracefactory.teaching.result import DatasetResult, Result
from tracefactory.teaching.statistics import Difference, Interval


def tables(result: Result) -> Group:
    """Return the tables of a result: what was learned, how students answered, what they were trained on."""
    each = f"{result.amount:,} {result.axis} of each dataset, {in_seeds(result.seeds)}; {result.questions:,} questions"
    title = f"{result.name} {result.version}: {public_name(result.student)}, {each}"
    learned = _table(title, "correct %", f"less {result.baseline}", "with seeds", "")
    answered = _table("how they answered, in %", "correct", "wrong", "no answer", "cut off", "in form", "tokens")
    trained = _table("what they were trained on", "rate", "rows", "problems", "epochs", "tokens", "each", "cut", "min")
    for one in result.datasets:
        learned.add_row(one.name, *_learned(one))
        answered.add_row(one.name, *_answered(one))
        if one.taken is not None:
            trained.add_row(one.name, *_trained(one))
    return Group(learned, answered, trained, *(Text(f"• {line}") for line in remarks(result)))


def remarks(result: Result) -> Iterator[str]:
    """Yield what has to be known to read the tables."""
    compared = [(one, one.difference) for one in result.datasets if one.difference is not None]
    for one, difference in compared:
        yield f"{one.name} is {verdict(difference, result.baseline)}"
    yield (
        f"{result.questions:,} questions and {in_seeds(result.seeds)} find a true difference of "
        f"{100 * result.detectable:.1f} points with a power of 80%, if students and seeds differ as they did here; "
        "intervals are 95%, over the questions; in the column `with seeds`, over questions and seeds"
    )
    if any(difference.seed_note for _, difference in compared):
        yield "with one seed the intervals are about these students, and say nothing about other trainings"
    for one in result.datasets:
        if one.refused:
            reasons = ", ".join(f"{reason} {count:,}" for reason, count in one.refused.items())
            yield f"{one.name}: rows that the student's template cannot render were left out: {reasons}"
        if one.taken is not None and one.taken.cut:
            lost = f"{one.taken.answers_lost:,} of them lost their answer"
            yield f"{one.name}: {one.taken.cut:,} of {one.taken.rows:,} rows were cut at their end, and {lost}"
    for one, difference in compared:
        if difference.excluded:
            yield f"{one.name}: {difference.excluded:,} questions have no verdict of every student and do not count"
    if result.leaked:
        yield f"{result.leaked:,} questions are in training rows of some dataset and do not count"
    for control in result.left_out:
        yield f"the control `{control}` was not made"


def verdict(difference: Difference, baseline: str) -> str:
    """Return a difference in words."""
    points = f"{100 * difference.difference:+.1f} points ({_interval(difference.seed_interval or difference.interval)})"
    if difference.separable == "not separable":
        return f"not separable from {baseline}: {points}"
    return f"{difference.separable} than {baseline}: {points}"


def in_seeds(seeds: int) -> str:
    """Return a number of training seeds in words."""
    return "1 seed" if seeds == 1 else f"{seeds} seeds"


def card_line(result: Result, release: str) -> TaughtLine:
    """Return a comparison for the card of a release that took part.

    Args:
        result: the comparison.
        release: the digest of the contents of the release.
    """
    return TaughtLine(
        comparison=f"{result.name}@{result.version}",
        student=public_name(result.student),
        amount=result.amount,
        axis=result.axis,
        seeds=result.seeds,
        questions=result.questions,
        baseline=result.baseline,
        datasets=tuple(_on_card(one, result.baseline, release) for one in result.datasets),
        command=result.command,
    )


def _on_card(one: DatasetResult, baseline: str, release: str) -> TaughtDataset:
    marks = _marks(one)
    whole = one.summary.seed_interval or one.summary.interval
    return TaughtDataset(
        name=one.name,
        this=bool(one.release) and one.release == release,
        about=one.about,
        correct=one.summary.mean,
        low=whole.low,
        high=whole.high,
        against="" if one.difference is None else verdict(one.difference, baseline),
        truncated=marks.truncated / max(marks.answers, 1),
        with_answer=marks.with_answer,
        tokens=marks.tokens,
    )


def _table(title: str, *columns: str) -> Table:
    table = plain_table(title)
    table.padding = (0, 1, 0, 0)
    table.add_column("dataset", overflow="fold", min_width=9)
    for name in columns:
        table.add_column(name, justify="right" if name else "left", no_wrap=True)
    return table


def _learned(one: DatasetResult) -> tuple[str, ...]:
    correct = f"{100 * one.summary.mean:.1f}"
    if one.difference is None:
        return correct, "", "", "baseline"
    gap = f"{100 * one.difference.difference:+.1f} ({_interval(one.difference.interval)})"
    seeds = "" if one.difference.seed_interval is None else _interval(one.difference.seed_interval)
    return correct, gap, seeds, one.difference.separable


def _answered(one: DatasetResult) -> tuple[str, ...]:
    marks = _marks(one)
    correct = f"{100 * one.summary.mean:.1f} ({_interval(one.summary.interval)})"
    counts = (marks.incorrect, marks.no_answer, marks.truncated)
    shares = (f"{100 * count / max(marks.answers, 1):.1f}" for count in counts)
    return correct, *shares, f"{100 * marks.with_answer:.1f}", f"{marks.tokens:.0f}"


def _marks(one: DatasetResult) -> Marks:
    """Return the marks of all students of a dataset: the sums of their counts, the means of their means."""
    marks = [student.marks for student in one.students]
    means = {name: fmean(getattr(mark, name) for mark in marks) for name in ("with_answer", "tokens")}
    counts = Marks.model_fields.keys() - means.keys()
    return Marks(**means, **{name: sum(getattr(mark, name) for mark in marks) for name in counts})


def _trained(one: DatasetResult) -> tuple[str, ...]:
    assert one.taken is not None
    taken, seconds = one.taken, sum(student.seconds for student in one.students)
    distinct = f"{taken.distinct_rows:,}", f"{taken.distinct_problems:,}"
    tokens = f"{taken.epochs:,}", f"{taken.tokens:,}", f"{one.mean_tokens:.0f}"
    return f"{one.learning_rate:.0e}", *distinct, *tokens, f"{taken.cut:,}", f"{seconds / 60:.1f}"


def _interval(found: Interval) -> str:
    return f"{100 * found.low:.1f} .. {100 * found.high:.1f}"
