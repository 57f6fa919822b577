"""Draw one trace for each problem, so that groups of traces get set shares of the problems or of their tokens.

The problems are those that every group solved, or those that at least one did. A problem that only some groups solved
can only have a trace of theirs; those that all solved then even out the shares, as far as there are enough of them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from enum import StrEnum
from itertools import pairwise
from typing import Literal, NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from tracefactory.core.digests import draws
from tracefactory.core.rows import Outcome
from tracefactory.core.stage import Decided

_SWEEPS = 50  # of the bounds of more than two groups, which settle in a few
_COLUMNS = {"style": "styles", "teacher": "teachers"}


class Unit(StrEnum):
    """What a share is a share of."""

    PROBLEMS = "problems"
    TOKENS = "tokens"


Pick = Literal["drawn", "shortest", "longest"]
Problems = Literal["all", "any"]
"""Problems that all groups solved, or that any of them did."""


class Draw(NamedTuple):
    """What to draw: the share of each group of a column, of what, how many problems, which trace of a group.

    `problems` are those that all groups solved, or any of them.
    """

    by: str
    shares: Mapping[str, float]
    unit: Unit = Unit.PROBLEMS
    size: int | None = None
    pick: Pick = "drawn"
    seed: int = 0
    problems: Problems = "all"


def draw(traces: pl.DataFrame, wanted: Draw) -> Decided:
    """Decide which trace of each problem is in the mix. The order of the rows does not matter.

    A problem can be drawn when every group has solved it, or any of them with `problems: any`. Problems are put in an
    order by hash; the first ones take the trace of the first group by name, the next ones that of the second, and so
    on. What only some groups solved is given to them first, so that the other problems even out the shares.

    Args:
        traces: one row per trace: problem_id, id, group, tokens, outcome.
        wanted: what to draw.
    """
    groups = sorted(wanted.shares)
    # What is drawn stands for the ids below: two ids never draw the same, and numbers are faster to join than text.
    ranked = traces.with_columns(
        lot=pl.Series(draws(traces["id"].to_arrow(), wanted.seed)),
        place=pl.Series(draws(traces["problem_id"].to_arrow(), wanted.seed)),
    )
    solved = ranked.filter(pl.col("outcome") == Outcome.CORRECT.value, pl.col("group").is_in(groups))
    order = ["lot"] if wanted.pick == "drawn" else ["tokens", "lot"]
    descending = [wanted.pick == "longest" and name == "tokens" for name in order]
    best = solved.sort(order, descending=descending).unique(["place", "group"], keep="first", maintain_order=True)
    solvers = best.group_by("place").agg(solvers=pl.col("group").sort()).sort("place")
    usable = solvers if wanted.problems == "any" else solvers.filter(pl.col("solvers").list.len() == len(groups))
    used = usable.head(wanted.size) if wanted.size else usable
    drawn = _assigned(used, best, wanted)
    decided = _decided(ranked, drawn, usable.select("place", usable=pl.lit(value=True)), wanted)
    sizes = solvers["solvers"].list.len()
    numbers = {
        "mix_problems": float(drawn.height),
        "mix_solved_by_all": float((sizes == len(groups)).sum()),
        "mix_solved_by_some": float((sizes < len(groups)).sum()),
    }
    return Decided(decided, numbers, notes=_notes(wanted, traces, solvers, drawn))


def _assigned(used: pl.DataFrame, best: pl.DataFrame, wanted: Draw) -> pl.DataFrame:
    """Return the group that every problem takes: place, drawn, and of its trace the columns chosen and tokens.

    Args:
        used: the problems of the mix: place and solvers.
        best: the trace that stands for each problem and group.
        wanted: what to draw.
    """
    taken = dict.fromkeys(wanted.shares, 0.0)
    parts = [used.select("place", drawn=pl.lit(None, pl.String)).head(0)]
    kinds = {tuple(solvers) for solvers in used["solvers"].to_list()}
    for kind in sorted(kinds, key=lambda one: (len(one), one)):
        part = used.filter(pl.col("solvers") == pl.lit(list(kind), pl.List(pl.String))).select("place")
        sizes = np.diff(_bounds(part, best, kind, wanted, taken, used.height))
        part = part.with_columns(drawn=pl.Series(np.repeat(list(kind), sizes), dtype=pl.String))
        parts.append(part)
        for group in kind:
            own = part.filter(pl.col("drawn") == group)
            taken[group] += own.height if wanted.unit is Unit.PROBLEMS else float(_tokens(own, best, group)[-1])
    traces = best.select("place", drawn="group", chosen="lot", tokens="tokens")
    return pl.concat(parts).join(traces, on=["place", "drawn"], how="left")


def _bounds(
    part: pl.DataFrame,
    best: pl.DataFrame,
    groups: Sequence[str],
    wanted: Draw,
    taken: Mapping[str, float],
    problems: int,
) -> NDArray[np.int64]:
    """Return where the problems of each group begin in the order of `part`, and the end of the last one.

    Args:
        part: problems that the same groups solved.
        best: the trace that stands for each problem and group.
        groups: those groups.
        wanted: what to draw.
        taken: what each group has already of other problems, in units of the shares.
        problems: the number of problems in the mix.
    """
    counted = wanted.unit is Unit.PROBLEMS
    # In tokens this is where the search begins: what is missing is known only for problems.
    missing = {one: max(0.0, wanted.shares[one] * problems - taken[one] * counted) for one in groups}
    if not any(missing.values()):
        missing = {one: wanted.shares[one] + 1e-9 for one in groups}  # groups of share 0 alone get equal parts
    ends = np.cumsum(list(missing.values())) / sum(missing.values())
    bounds = np.array([0, *(int(end * part.height + 0.5) for end in ends[:-1]), part.height], dtype=np.int64)
    if counted or part.is_empty():
        return bounds
    sums = [_tokens(part, best, group) for group in groups]
    for _ in range(_SWEEPS if len(groups) > 2 else 1):
        before = bounds.copy()
        for one, (group, following) in enumerate(pairwise(groups)):
            first, last = bounds[one], bounds[one + 2]
            own = sums[one][first : last + 1] - sums[one][first] + taken[group]
            theirs = sums[one + 1][last] - sums[one + 1][first : last + 1] + taken[following]
            both = wanted.shares[group] + wanted.shares[following]
            share = wanted.shares[group] / both if both else 0.0
            bounds[one + 1] = first + np.argmin(np.abs(own / np.maximum(own + theirs, 1) - share))
        if (bounds == before).all():
            break
    return bounds


def _tokens(part: pl.DataFrame, best: pl.DataFrame, group: str) -> NDArray[np.int64]:
    """Return the tokens of the first 0, 1, 2 ... problems of `part`, as a group solved them."""
    own = best.filter(pl.col("group") == group).select("place", "tokens")
    tokens = part.join(own, on="place", how="left", maintain_order="left")["tokens"]
    return np.concatenate([[0], tokens.cum_sum().to_numpy()])


def _decided(traces: pl.DataFrame, drawn: pl.DataFrame, usable: pl.DataFrame, wanted: Draw) -> pl.DataFrame:
    """Return the decision on every trace, in the order of `traces`."""
    joined = traces.join(drawn.drop("tokens"), on="place", how="left", maintain_order="left").join(
        usable, on="place", how="left", maintain_order="left"
    )
    words = {group: re.sub(r"[^a-z0-9]+", "_", group.lower()).strip("_") for group in wanted.shares}
    group, name = pl.col("group"), pl.col("group").replace(words)
    alone = pl.format("only_{}_solved", name) if len(words) == 2 else pl.lit("not_all_solved")
    reason = (
        pl.when(pl.col("lot") == pl.col("chosen"))
        .then(None)
        .when(~group.is_in(list(words)).fill_null(value=False))
        .then(pl.lit("other_style" if wanted.by == "style" else "other_group"))
        .when(pl.col("outcome").ne_missing(Outcome.CORRECT.value))
        .then(pl.lit("not_correct"))
        .when(pl.col("usable").is_null())
        .then(alone)
        .when(pl.col("chosen").is_null())
        .then(pl.lit("over_size"))
        .when(pl.col("drawn") != group)
        .then(pl.format("drawn_{}", pl.col("drawn").replace(words)))
        .otherwise(pl.lit("sibling_chosen"))
    )
    decided = joined.select("problem_id", "id", reason=reason)
    return decided.with_columns(kept=pl.col("reason").is_null())


def _notes(wanted: Draw, traces: pl.DataFrame, solvers: pl.DataFrame, drawn: pl.DataFrame) -> tuple[str, ...]:
    """Return sentences with the requested and the actual shares."""
    shares, problems = wanted.shares, drawn.height
    what = _COLUMNS.get(wanted.by, "groups")
    every = f"both {what}" if len(shares) == 2 else f"all {len(shares)} {what}"
    sizes = solvers["solvers"].list.len()
    by_all, by_some = int((sizes == len(shares)).sum()), int((sizes < len(shares)).sum())
    alone = solvers.filter(sizes == 1)["solvers"].list.first()
    only = "" if len(shares) == 1 else "".join(f", only {one} {int((alone == one).sum())}" for one in shares)
    notes = [f"mix: {problems} problems of {traces['problem_id'].n_unique()}; solved by {every} {by_all}{only}"]
    if by_some:
        done = "are left out" if wanted.problems == "all" else "can only have their traces"
        notes.append(f"mix: `problems: {wanted.problems}`: the {by_some} that only some {what} solved {done}")
    total = max(int(drawn["tokens"].sum()), 1)
    parts = []
    for one, share in shares.items():
        rows = drawn.filter(pl.col("drawn") == one)
        got, tokens = rows.height / max(problems, 1), int(rows["tokens"].sum()) / total
        parts.append(f"{rows.height} {one} ({got:.1%} of problems, {tokens:.1%} of tokens, asked for {share:.1%})")
    notes.append(f"mix by {wanted.unit.value}: {', '.join(parts)}")
    solved = f"solved by {every}" if wanted.problems == "all" else "solved"
    if wanted.size and problems < wanted.size:
        notes.append(f"shortfall: asked for {wanted.size} problems, {wanted.size - problems} too few were {solved}")
    if not problems:
        notes.append(f"shortfall: no problem was {solved}, so the mix is empty")
    return tuple(notes)
