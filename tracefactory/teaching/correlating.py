"""How measures of datasets rank with what students learned from them, over all stored comparisons of a project."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

from pydantic import ValidationError
from rich.table import Table

from tracefactory.core.errors import Mistake, UserError
from tracefactory.core.model import public_name
from tracefactory.core.rows import Frozen
from tracefactory.core.teach import UNTOUCHED
from tracefactory.engine.reporting.report import plain_table
from tracefactory.teaching.rank_correlation import Correlation, spearman
from tracefactory.teaching.result import RESULT, Result

FEWEST = 3
LENGTH = "tokens per row"


class Correlated(Frozen):
    """One measure under one student: its rank correlation with the gain over the untouched student.

    `comparisons` is the number of comparisons that the datasets are from.
    """

    student: str
    measure: str
    correlation: Correlation
    comparisons: int


def stored_results(out: Path) -> list[Result]:
    """Return the results of all comparisons in a project's `out/`, by their paths.

    Raises:
        UserError: for one that cannot be read.
    """
    found = []
    for file in sorted(out.glob(f"[!.]*/[!.]*/{RESULT}")):
        try:
            found.append(Result.model_validate_json(file.read_bytes()))
        except (ValidationError, OSError) as error:
            raise UserError(
                Mistake(f"{file} cannot be read", hint="delete it, and run its comparison again")
            ) from error
    return found


def correlations(results: Sequence[Result]) -> list[Correlated]:
    """Return how each measure ranks with the gain, by student, the strongest first.

    A point is a dataset of a comparison: the mean of the measure over its rows, and by how much its students answer
    better than the untouched student. Measures with fewer than `FEWEST` points are left out.
    """
    points: dict[tuple[str, str], list[tuple[float, float, str]]] = defaultdict(list)
    for result in results:
        for measure, value, gain in _points(result):
            name = f"{result.name}@{result.version}"
            points[public_name(result.student), measure].append((value, gain, name))
    found = [
        Correlated(
            student=student,
            measure=measure,
            correlation=spearman([one[0] for one in known], [one[1] for one in known]),
            comparisons=len({one[2] for one in known}),
        )
        for (student, measure), known in points.items()
        if len(known) >= FEWEST
    ]
    return sorted(found, key=lambda one: (one.student, -abs(one.correlation.rho or 0.0), one.measure))


def table_of(found: Sequence[Correlated]) -> Table:
    """Return the correlations as a table, which fits 80 columns."""
    table = plain_table("measures of datasets, and the gain of students over the untouched one")
    for name in ("student", "measure"):
        table.add_column(name, overflow="fold")
    for name in ("rank correlation", "p", "datasets", "comparisons"):
        table.add_column(name, justify="right")
    for one in found:
        rho, p = one.correlation.rho, one.correlation.p
        shown = ("-" if rho is None else f"{rho:+.2f}", "-" if p is None else f"{p:.2f}")
        table.add_row(one.student, one.measure, *shown, f"{one.correlation.n:,}", f"{one.comparisons:,}")
    return table


def _points(result: Result) -> Iterator[tuple[str, float, float]]:
    """Yield the measures of each dataset, with the gain of its students."""
    untouched = next(one.summary.mean for one in result.datasets if one.name == UNTOUCHED)
    for one in result.datasets:
        if one.name != UNTOUCHED:
            for measure, value in {LENGTH: one.mean_tokens, **one.measures}.items():
                yield measure, value, one.summary.mean - untouched
