"""Rank teachers for a student by measures of their traces, with bootstrap intervals over problems."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from statistics import median

import numpy as np
from numpy.typing import NDArray

from tracefactory.core.rows import Frozen, Outcome, Trace
from tracefactory.students.names import acceptance_name
from tracefactory.verification.pass_rates import PassRate, pass_rate

RESAMPLES = 2000
LOCAL_WINDOW = 4
PAPER_TRACES = 200  # per teacher, in the study of the default measure

Table = NDArray[np.float64]


class RankBy(StrEnum):
    """The measure to rank teachers by."""

    RANK_SURPRISAL = "rank_surprisal"
    LOCAL_NATURALNESS = "local_naturalness"
    MEAN_SURPRISAL = "mean_surprisal"
    ACCEPTANCE = "acceptance"


@dataclass(frozen=True)
class Basis:
    """A ranking criterion: the mean of a measure over traces, or its ratio to the mean of another, and its evidence."""

    measure: str
    per: str | None
    higher: bool
    evidence: str


BASES = {
    RankBy.RANK_SURPRISAL: Basis(
        "mean_clipped_rank",
        "mean_surprisal",
        False,
        "rank-surprisal ratio, lower is better; Spearman 0.86 with accuracy after training over 5 students x 11 "
        "teachers, 200 traces of each (arXiv 2601.14249)",
    ),
    RankBy.LOCAL_NATURALNESS: Basis(
        f"local_naturalness_w{LOCAL_WINDOW}",
        None,
        True,
        "local naturalness, higher is better; one study with a 32B student (arXiv 2510.03988), whose window is not "
        f"published: {LOCAL_WINDOW} steps here",
    ),
    RankBy.MEAN_SURPRISAL: Basis(
        "mean_surprisal",
        None,
        False,
        "mean surprisal, lower is better; a weak criterion: Spearman 0.49 in the study with 0.86 for the "
        "rank-surprisal ratio (arXiv 2601.14249)",
    ),
    RankBy.ACCEPTANCE: Basis(
        acceptance_name(0.01, 20),
        None,
        True,
        "share of tokens that reverse speculative decoding would accept, higher is better; shown for one 0.6B student "
        "as a rule of decoding (arXiv 2509.22230), not as a way to choose a teacher",
    ),
}


class TeacherRow(Frozen):
    """The result of one teacher's trial. `low` and `high` are the 95% interval of `value` over resampled problems.

    Of the requested `samples`, `failed` are errors, `refused` were dropped by the stage's own rule, and `unmeasured`
    could not be scored under the student. The value is over `used` traces; it is None when there are none, and its
    interval is None when all of them are of one problem. `first` is the share of resamples in which this teacher ranks
    first. Tokens are the server's counts of completions; `student_tokens` is the median in the student's tokens. Costs
    are US dollars, None when the price of the model or of a trace is unknown; `cost_per_usable` is the cost of all
    samples per correct trace.
    """

    teacher: str
    model: str
    stage: str
    prompt: str
    style: str
    samples: int
    failed: int
    refused: int
    unmeasured: int
    passed: PassRate
    used: int
    value: float | None
    low: float | None
    high: float | None
    first: float
    median_tokens: float | None
    total_tokens: int
    student_tokens: float | None
    cost: float | None
    cost_per_usable: float | None


@dataclass(frozen=True)
class TeacherTrial:
    """The traces of one teacher's trial: verified, and measured under the student."""

    teacher: str
    model: str
    stage: str
    prompt: str
    priced: bool
    samples: int
    failed: int
    verified: Sequence[Trace]
    measured: Sequence[Trace]


def rank_teachers(
    trials: Sequence[TeacherTrial],
    student: str,
    by: RankBy = RankBy.RANK_SURPRISAL,
    *,
    every: bool = False,
    seed: int = 0,
) -> list[TeacherRow]:
    """Return the teachers, best first, those without a value last; ties in the given order.

    The value is that of the set of a teacher's correct traces, as the paper of the measure defines it for sets.
    Intervals are percentiles of a bootstrap over problems. All teachers share the same resamples, so that differences
    in difficulty between problems do not widen the comparison.

    Args:
        trials: the traces of each teacher.
        student: the name of the student, whose measures the traces have.
        by: the measure to rank by.
        every: whether to use all traces of a teacher, including the incorrect ones.
        seed: the seed of the bootstrap.
    """
    basis = BASES[by]
    used = [[trace for trace in one.measured if every or _is_correct(trace)] for one in trials]
    problems = {trace.problem_id for one in trials for trace in one.verified}
    numbered = {problem: number for number, problem in enumerate(sorted(problems))}
    draws = _draws(len(numbered), seed)
    tables = [_table(traces, numbered, student, basis) for traces in used]
    values = [_values(np.ones((1, len(numbered))), table)[0] for table in tables]
    resampled = np.array([_values(draws, table) for table in tables]).reshape(len(trials), RESAMPLES)
    firsts = _first_shares(resampled, basis.higher)
    rows = [
        _row(one, student, traces, value, spread, first)
        for one, traces, value, spread, first in zip(trials, used, values, resampled, firsts, strict=True)
    ]
    sign = -1.0 if basis.higher else 1.0
    return sorted(rows, key=lambda row: (row.value is None, sign * (row.value or 0.0)))


def remarks(rows: Sequence[TeacherRow], by: RankBy, *, every: bool = False) -> list[str]:
    """Return the notes that are printed with the ranking."""
    notes = [BASES[by].evidence]
    if every:
        notes.append("ranked by all traces, including incorrect ones: a teacher without correct traces can rank first")
    valued = [row for row in rows if row.value is not None]
    if not valued:
        return [*notes, "no teacher has a correct trace to rank by; use --all to rank by all traces"]
    fewest = min(row.used for row in valued)
    if fewest < PAPER_TRACES:
        notes.append(f"a teacher has only {fewest} traces; the studies used {PAPER_TRACES}: see the intervals")
    if len(valued) > 1 and valued[0].first < 0.95:
        notes.append(f"not settled: {valued[0].stage} ranks first in {valued[0].first:.0%} of resamples")
    notes += [f"{row.stage}: no correct trace, so it is not ranked" for row in rows if row.value is None]
    return notes


def _is_correct(trace: Trace) -> bool:
    return trace.verdict is not None and trace.verdict.outcome is Outcome.CORRECT


def _draws(problems: int, seed: int) -> Table:
    """Return the number of times each problem is drawn in each resample: [RESAMPLES, problems]."""
    if problems == 0:
        return np.zeros((RESAMPLES, 0))
    even = np.full(problems, 1.0 / problems)
    return np.random.default_rng(seed).multinomial(problems, even, size=RESAMPLES).astype(np.float64)


def _table(traces: Sequence[Trace], numbered: dict[str, int], student: str, basis: Basis) -> Table:
    """Return the sums over traces, per problem, of the measure and of its divisor: [problems, 2]."""
    table = np.zeros((len(numbered), 2))
    for trace in traces:
        value = trace.measures.get(f"{student}/{basis.measure}")
        if value is not None:
            table[numbered[trace.problem_id]] += (value, trace.measures[f"{student}/{basis.per}"] if basis.per else 1.0)
    return table


def _values(weights: Table, table: Table) -> Table:
    """Return the value of the set in each resample; NaN when none of its traces was drawn."""
    above, below = (weights @ table).T
    values: Table = np.divide(above, below, out=np.full(len(weights), np.nan), where=below != 0)
    return values


def _first_shares(resampled: Table, higher: bool) -> list[float]:
    """Return the share of resamples in which each teacher is best; ties are split."""
    worst = -np.inf if higher else np.inf
    known = np.where(np.isnan(resampled), worst, resampled)
    best = known.max(axis=0) if higher else known.min(axis=0)
    leads = (known == best) & ~np.isnan(resampled)
    shared = leads / np.maximum(leads.sum(axis=0), 1)
    return [float(share) for share in shared.mean(axis=1)]


def _row(
    one: TeacherTrial, student: str, used: Sequence[Trace], value: float, spread: Table, first: float
) -> TeacherRow:
    tokens = [trace.completion_tokens for trace in one.verified]
    own = [trace.measures[f"{student}/tokens"] for trace in used]
    right = sum(map(_is_correct, one.verified))
    costs = [trace.cost for trace in one.verified if trace.cost is not None]
    cost = sum(costs) if one.priced and len(costs) == len(one.verified) else None
    known = spread[~np.isnan(spread)]
    spreads = len({trace.problem_id for trace in used}) > 1 and len(known) > 0
    low, high = np.percentile(known, [2.5, 97.5]) if spreads else (None, None)
    return TeacherRow(
        teacher=one.teacher,
        model=one.model,
        stage=one.stage,
        prompt=one.prompt,
        style=next((trace.style for trace in one.verified), ""),
        samples=one.samples,
        failed=one.failed,
        refused=one.samples - one.failed - len(one.verified),
        unmeasured=len(one.verified) - len(one.measured),
        passed=pass_rate(trace.verdict.outcome for trace in one.verified if trace.verdict is not None),
        used=len(used),
        value=None if np.isnan(value) else float(value),
        low=None if low is None else float(low),
        high=None if high is None else float(high),
        first=first,
        median_tokens=median(tokens) if tokens else None,
        total_tokens=sum(tokens),
        student_tokens=median(own) if own else None,
        cost=cost,
        cost_per_usable=None if cost is None or right == 0 else cost / right,
    )
