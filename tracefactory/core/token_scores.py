"""Token scores: the student's probabilities of every supervised token, from one forward pass, and their table."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

Ints = NDArray[np.int32]
Floats = NDArray[np.float32]
Span = tuple[int, int]
"""A [start, end) character range."""

TOKEN_SCORES_SCHEMA = pa.schema(
    [
        pa.field("trace_id", pa.string(), nullable=False),
        pa.field("student", pa.string(), nullable=False),
        pa.field("body_start", pa.int32(), nullable=False),
        *(pa.field(name, pa.list_(pa.int32()), nullable=False) for name in ("token_ids", "starts", "ends", "ranks")),
        *(pa.field(name, pa.list_(pa.float32()), nullable=False) for name in ("logprobs", "entropies")),
        pa.field("text", pa.string()),
        pa.field("instead", pa.list_(pa.string())),
    ]
)
"""One row per (trace, student); the list columns of a row have one entry per supervised token."""

WORDS = ("text", "instead")
"""The columns for display, which are read only on request."""

_LISTS = ("token_ids", "starts", "ends", "ranks", "logprobs", "entropies")


@dataclass(frozen=True, eq=False)
class TokenScores:
    """The student's scores of the supervised tokens of one rendered trace, in order.

    `token_ids`, `starts` and `ends` (characters of the supervised text) come from the rendering. `logprobs` are
    natural logarithms of the probability at temperature 1 over the whole vocabulary; `ranks` are 1 for the likeliest
    token, ties sharing the best rank (1 + the number of strictly greater logits); `entropies` (nats) are of the
    student's distribution at that position, NaN if the server does not return it. `body_start` is the character of the
    supervised text where the trace's reasoning begins (its answer, if it has no reasoning); step spans are relative to
    it.

    `text` is the supervised text. `instead` has, for every token, the student's likeliest token if it is a different
    one. Both are for display, and None if they were not stored or not read.
    """

    token_ids: Ints
    starts: Ints
    ends: Ints
    ranks: Ints
    logprobs: Floats
    entropies: Floats
    body_start: int
    text: str | None = None
    instead: tuple[str | None, ...] | None = None

    def __len__(self) -> int:
        return len(self.token_ids)


def scores_to_table(rows: Iterable[tuple[str, str, TokenScores]]) -> pa.Table:
    """Return a table with TOKEN_SCORES_SCHEMA.

    Args:
        rows: (trace id, student key, scores) for each row.
    """
    rows = list(rows)
    columns: dict[str, Any] = {
        "trace_id": [trace_id for trace_id, _, _ in rows],
        "student": [student for _, student, _ in rows],
        "body_start": [scores.body_start for _, _, scores in rows],
    }
    for name in (*_LISTS, *WORDS):
        columns[name] = [getattr(scores, name) for _, _, scores in rows]
    arrays = [pa.array(columns[field.name], type=field.type) for field in TOKEN_SCORES_SCHEMA]
    return pa.Table.from_arrays(arrays, schema=TOKEN_SCORES_SCHEMA)


def scores_from_table(table: pa.Table) -> Iterator[tuple[str, str, TokenScores]]:
    """Yield (trace id, student key, scores) for each row of a table, without copying the numbers.

    Args:
        table: a table from `scores_to_table`, with or without the columns in `WORDS`.
    """
    words = [name for name in WORDS if name in table.column_names]
    fields = [field for field in TOKEN_SCORES_SCHEMA if field.name in words or field.name not in WORDS]
    for batch in table.cast(pa.schema(fields)).to_batches():
        plain = batch.select(["trace_id", "student", "body_start", *words]).to_pylist()
        lists = {name: batch.column(name) for name in _LISTS}
        for index, row in enumerate(plain):
            arrays = {name: column[index].values.to_numpy() for name, column in lists.items()}
            instead = None if row.get("instead") is None else tuple(row["instead"])
            yield (
                row["trace_id"],
                row["student"],
                TokenScores(body_start=row["body_start"], text=row.get("text"), instead=instead, **arrays),
            )
