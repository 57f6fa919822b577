"""Keep the best few rows of every group, by any column."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import polars as pl

Best = Literal["lowest", "highest"]


def best_of_each(
    frame: pl.DataFrame, column: str, count: int, best: Best, groups: Sequence[str] = ("problem_id",)
) -> pl.DataFrame:
    """Decide which rows are among the `count` best of their group.

    Ties go to the smaller id, so that the order of rows does not matter. A row whose value is null or NaN is not
    measured, and never among the best.

    Args:
        frame: problem_id, id and `column`, in any order of rows.
        column: what to go by.
        count: rows to keep of each group, at least 1.
        best: which end of the column is the better one.
        groups: columns whose values make a group; none for one group of all rows.

    Returns:
        problem_id, id, kept, reason (not_measured or not_among_best) and detail, in the order of `frame`.
    """
    value = pl.col(column).cast(pl.Float64).fill_nan(None)
    sign = 1 if best == "lowest" else -1
    group = [pl.col(name) for name in groups] or [pl.lit(1)]
    order = pl.struct((value * sign).alias("value"), "id")
    ranked = frame.with_columns(
        value=value,
        place=pl.when(value.is_not_null()).then(order).rank("ordinal").over(group),
        among=value.is_not_null().sum().over(group),
    )
    kept = pl.col("place").is_not_null() & (pl.col("place") <= count)
    measured = pl.col("value").is_not_null()
    place = pl.format("{} is place {} of {}", pl.col("value"), "place", "among")
    return ranked.select(
        "problem_id",
        "id",
        kept=kept,
        reason=pl.when(kept).then(None).when(measured).then(pl.lit("not_among_best")).otherwise(pl.lit("not_measured")),
        detail=pl.when(kept).then(None).when(measured).then(place).otherwise(pl.lit("the row has no such value")),
    )
