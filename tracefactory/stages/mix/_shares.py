"""Draw one trace for each problem, so that groups of traces get set shares of the problems or of their tokens."""

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


class Draw(NamedTuple):
    """What to draw: the share of each group of a column, of what, how many problems, and which trace of a group."""

    by: str
    shares: Mapping[str, float]
    unit: Unit = Unit.PROBLEMS
    size: int | None = None
    pick: Pick = "drawn"
    seed: int = 0


def draw(traces: pl.DataFrame, wanted: Draw) -> Decided:
    """Decide which trace of each problem is in the mix. The order of the rows does not matter.

    A problem can be drawn when every group has solved it. Problems are put in an order by hash; the first ones take
    the trace of the first group by name, the next ones that of the second, and so on.

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
    by_all = best.group_by("place").len().filter(pl.col("len") == len(groups)).select("place").sort("place")
    used = by_all.head(wanted.size) if wanted.size else by_all
    sizes = np.diff(_bounds(used, best, groups, wanted))
    drawn = used.with_columns(drawn=pl.Series(np.repeat(groups, sizes), dtype=pl.String)).join(
        best.select("place", drawn="group", chosen="lot", tokens="tokens"), on=["place", "drawn"], how="left"
    )
    decided = _decided(ranked, drawn, by_all.with_columns(solved_by_all=pl.lit(value=True)), wanted)
    return Decided(decided, notes=_notes(wanted, traces, best, drawn))


def _bounds(used: pl.DataFrame, best: pl.DataFrame, groups: Sequence[str], wanted: Draw) -> NDArray[np.int64]:
    """Return where the problems of each group begin in the order of `used`, and the end of the last one."""
    ends = np.cumsum([wanted.shares[group] for group in groups])
    bounds = np.array([0, *(int(end * used.height + 0.5) for end in ends[:-1]), used.height], dtype=np.int64)
    if wanted.unit is Unit.PROBLEMS or used.is_empty():
        return bounds
    sums = []  # tokens of the first problems, as each group solved them
    for group in groups:
        own = best.filter(pl.col("group") == group).select("place", "tokens")
        tokens = used.join(own, on="place", how="left", maintain_order="left")["tokens"]
        sums.append(np.concatenate([[0], tokens.cum_sum().to_numpy()]))
    for _ in range(_SWEEPS if len(groups) > 2 else 1):
        before = bounds.copy()
        for one, (group, following) in enumerate(pairwise(groups)):
            first, last = bounds[one], bounds[one + 2]
            own = sums[one][first : last + 1] - sums[one][first]
            theirs = sums[one + 1][last] - sums[one + 1][first : last + 1]
            both = wanted.shares[group] + wanted.shares[following]
            share = wanted.shares[group] / both if both else 0.0
            bounds[one + 1] = first + np.argmin(np.abs(own / np.maximum(own + theirs, 1) - share))
        if (bounds == before).all():
            break
    return bounds


def _decided(traces: pl.DataFrame, drawn: pl.DataFrame, by_all: pl.DataFrame, wanted: Draw) -> pl.DataFrame:
    """Return the decision on every trace, in the order of `traces`."""
    joined = traces.join(drawn.drop("tokens"), on="place", how="left", maintain_order="left").join(
        by_all, on="place", how="left", maintain_order="left"
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
        .when(pl.col("solved_by_all").is_null())
        .then(alone)
        .when(pl.col("chosen").is_null())
        .then(pl.lit("over_size"))
        .when(pl.col("drawn") != group)
        .then(pl.format("drawn_{}", pl.col("drawn").replace(words)))
        .otherwise(pl.lit("sibling_chosen"))
    )
    decided = joined.select("problem_id", "id", reason=reason)
    return decided.with_columns(kept=pl.col("reason").is_null())


def _notes(wanted: Draw, traces: pl.DataFrame, best: pl.DataFrame, drawn: pl.DataFrame) -> tuple[str, ...]:
    """Return sentences with the requested and the actual shares."""
    shares, problems = wanted.shares, drawn.height
    what = _COLUMNS.get(wanted.by, "groups")
    every = f"both {what}" if len(shares) == 2 else f"all {len(shares)} {what}"
    found = best.group_by("place").agg(pl.len().alias("groups"), pl.col("group").first())
    by_all = found.filter(pl.col("groups") == len(shares)).height
    alone = {} if len(shares) == 1 else {one: found.filter(groups=1, group=one).height for one in shares}
    only = "".join(f", only {one} {count}" for one, count in alone.items())
    notes = [f"mix: {problems} problems of {traces['problem_id'].n_unique()}; solved by {every} {by_all}{only}"]
    total = max(int(drawn["tokens"].sum()), 1)
    parts = []
    for one, share in shares.items():
        rows = drawn.filter(pl.col("drawn") == one)
        got, tokens = rows.height / max(problems, 1), int(rows["tokens"].sum()) / total
        parts.append(f"{rows.height} {one} ({got:.1%} of problems, {tokens:.1%} of tokens, asked for {share:.1%})")
    notes.append(f"mix by {wanted.unit.value}: {', '.join(parts)}")
    if wanted.size and problems < wanted.size:
        missing = wanted.size - problems
        notes.append(f"shortfall: asked for {wanted.size} problems, {missing} too few were solved by {every}")
    if not problems:
        notes.append(f"shortfall: no problem was solved by {every}, so the mix is empty")
    return tuple(notes)
