"""Rows for a budget, so that students of several datasets are trained on equally much of each.

The order of the rows depends on their ids and the seed alone. Short data is taken again from the beginning, in another
order, until the budget is reached: never less than the budget, and less than one row more than it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from tracefactory.core.errors import Mistake, UserError
from tracefactory.core.files import whole_file
from tracefactory.core.fingerprint import digest
from tracefactory.core.rows import Frozen
from tracefactory.core.teach import Axis, TrainingBudget
from tracefactory.teaching.encoding import digest_of_rows

Ints = NDArray[np.int64]
MOST_EPOCHS = 1000
"""A budget that repeats the data more often is taken for a mistake."""


class Taken(Frozen):
    """What was taken for a budget.

    `reached` is in the unit of `axis`; of `tokens` it may be more than `amount` by less than one row. `epochs` is how
    often the data was begun, and `tokens` is in the loss. `rows`, `cut` and `answers_lost` count a row each time
    that it is taken.
    """

    axis: Axis
    amount: int
    reached: int
    epochs: int
    rows: int
    tokens: int
    distinct_rows: int
    distinct_problems: int
    cut: int
    answers_lost: int


@dataclass(frozen=True, eq=False)
class Plan:
    """The rows of a training run: `order` has their numbers in the table of encoded rows, repeats included."""

    order: Ints
    taken: Taken


def plan_rows(table: pa.Table, budget: TrainingBudget, seed: int) -> Plan:
    """Choose rows for a budget.

    Args:
        table: encoded rows, in any order.
        budget: how much to take.
        seed: the seed of the order.

    Raises:
        UserError: when there is no row, an id occurs twice, or the budget needs more than `MOST_EPOCHS` repeats.
    """
    ids, problems = table["id"].to_pylist(), table["problem_id"].to_pylist()
    tokens = table["tokens"].to_numpy()
    _check(ids, tokens, problems, budget)
    chosen: list[Ints] = []
    reached = 0
    for epoch in range(MOST_EPOCHS):
        order = _shuffled(ids, seed, epoch)
        if budget.axis == "problems":
            part, gained = _of_problems(order, problems, budget.amount - reached, seed, epoch)
        else:
            each = tokens[order] if budget.axis == "tokens" else np.ones(len(order), np.int64)
            sums = np.cumsum(each, dtype=np.int64)
            needed = min(int(np.searchsorted(sums, budget.amount - reached)) + 1, len(order))
            part, gained = order[:needed], int(sums[needed - 1])
        chosen.append(part)
        reached += gained
        if reached >= budget.amount:
            break
    order = np.concatenate(chosen)
    rows = table.take(pa.array(order))
    taken = Taken(
        axis=budget.axis,
        amount=budget.amount,
        reached=reached,
        epochs=len(chosen),
        rows=len(order),
        tokens=int(tokens[order].sum(dtype=np.int64)),
        distinct_rows=len(np.unique(order)),
        distinct_problems=len(pc.unique(rows["problem_id"])),
        cut=int(pc.sum(rows["cut"]).as_py()),
        answers_lost=int(pc.sum(rows["answer_lost"]).as_py()),
    )
    return Plan(order, taken)


def write_plan(folder: Path, table: pa.Table, plan: Plan) -> tuple[Path, str]:
    """Write the rows of a plan as a Parquet file, each once with its `places` in the order of training.

    Args:
        folder: where the file is put; it is named after its contents.
        table: the encoded rows that the plan was made from.
        plan: the plan.

    Returns:
        The file, and the digest of its contents.
    """
    places: dict[int, list[int]] = {}
    for place, number in enumerate(plan.order.tolist()):
        places.setdefault(number, []).append(place)
    used = table.take(pa.array(list(places), pa.int64()))
    used = used.append_column("places", pa.array(list(places.values()), pa.list_(pa.int64()))).sort_by("id")
    contents = digest_of_rows(used)
    file = folder / f"{contents[:16]}.parquet"
    with whole_file(file) as temporary:
        pq.write_table(used, temporary, compression="zstd")
    return file, contents


def order_of(table: pa.Table) -> Ints:
    """Return the rows of a table that `write_plan` wrote, by number, in the order of training.

    Raises:
        ValueError: when the places are not 0, 1, 2 and so on.
    """
    places = pc.list_flatten(table["places"]).to_numpy()
    numbers = np.repeat(np.arange(len(table)), pc.list_value_length(table["places"]).to_numpy())
    if not np.array_equal(np.sort(places), np.arange(len(places))):
        raise ValueError("the places of the rows in the order of training have gaps or repeats")
    return numbers[np.argsort(places)]


def _check(ids: Sequence[str], tokens: Ints, problems: Sequence[str], budget: TrainingBudget) -> None:
    if not ids:
        raise UserError("there is no row to train on")
    if len(set(ids)) < len(ids):
        twice = next(one for number, one in enumerate(sorted(ids)) if number and one == sorted(ids)[number - 1])
        raise UserError(f"the row {twice!r} is there twice; the order of the rows is decided by their ids")
    if tokens.min() < 1:
        raise UserError(f"the row {ids[int(tokens.argmin())]!r} has no token in the loss")
    sizes = {"tokens": int(tokens.sum(dtype=np.int64)), "rows": len(ids), "problems": len(set(problems))}
    one_epoch = sizes[budget.axis]
    if budget.amount > one_epoch * MOST_EPOCHS:
        message = f"the budget of {budget.amount} {budget.axis} would repeat the data, which has {one_epoch}"
        raise UserError(Mistake(f"{message}, more than {MOST_EPOCHS} times", hint="lower the budget"))


def _shuffled(ids: Sequence[str], seed: int, epoch: int) -> Ints:
    """Return the numbers of the rows in the order of one epoch, which the ids, the seed and the epoch decide."""
    keys = [digest(["order", seed, epoch, one]) for one in ids]
    return np.array(sorted(range(len(ids)), key=keys.__getitem__), dtype=np.int64)


def _of_problems(order: Ints, problems: Sequence[str], most: int, seed: int, epoch: int) -> tuple[Ints, int]:
    """Return the rows of at most `most` problems in the order of an epoch, and the number of these problems."""
    by_hash = sorted(set(problems), key=lambda one: digest(["problems", seed, epoch, one]))
    kept = set(by_hash[:most])
    return np.array([number for number in order.tolist() if problems[number] in kept], dtype=np.int64), len(kept)
