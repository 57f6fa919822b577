"""Rows of a dataset in the tokens of a student: what goes into the model, and which tokens are in the loss.

The ids and the mask are made here once, with the same rendering that scores traces, and the trainer takes them as they
are: no option of a trainer decides what is supervised.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tracefactory.students.render import Rendered, Renderer, RenderError
from tracefactory.teaching.rows import TrainingRow
from tracefactory.text.turns import parts

IGNORED = -100
"""The label of a token that is not in the loss."""

_TOKENS = pa.list_(pa.int32())
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("problem_id", pa.string()),
        ("input_ids", _TOKENS),
        ("labels", _TOKENS),
        ("tokens", pa.int32()),  # in the loss
        ("cut", pa.bool_()),
        ("answer_lost", pa.bool_()),
    ]
)
"""The columns of encoded rows."""


@dataclass(frozen=True)
class Refused:
    """A row that cannot be trained on; `reason` is a stable snake_case identifier, `detail` a sentence."""

    id: str
    reason: str
    detail: str


@dataclass(frozen=True, eq=False)
class Encoded:
    """Encoded rows in the columns of `SCHEMA`, in the order they were given, and the rows that could not be encoded.

    A row that is longer than `max_length` tokens is cut at its end. `answer_lost` says that a part of its answer was
    cut with it, and not only the marker that ends the turn.
    """

    table: pa.Table
    max_length: int
    refused: tuple[Refused, ...] = field(default=())

    @property
    def tokens(self) -> int:
        """Tokens in the loss, of all rows."""
        return int(pc.sum(self.table["tokens"]).as_py() or 0)

    @property
    def cut(self) -> int:
        """Rows that were cut."""
        return int(pc.sum(self.table["cut"]).as_py() or 0)

    @property
    def answers_lost(self) -> int:
        """Rows that lost their answer, or a part of it, when they were cut."""
        return int(pc.sum(self.table["answer_lost"]).as_py() or 0)

    @property
    def reasons(self) -> dict[str, int]:
        """Number of refused rows by reason."""
        return dict(sorted(Counter(one.reason for one in self.refused).items()))


def encode_rows(rows: Iterable[TrainingRow], renderer: Renderer, max_length: int) -> Encoded:
    """Encode rows with the template and the tokenizer of a student.

    Args:
        rows: conversations whose last message is trained on.
        renderer: the student's; its check of the template comes first.
        max_length: the maximum length of a row in tokens, prompt included.

    Raises:
        UserError: when the student's template loses the reasoning or the answer of every trace.
    """
    renderer.check()
    made: list[dict[str, Any]] = []
    refused: list[Refused] = []
    for row in rows:
        try:
            made.append(_encoded(row, renderer, max_length))
        except RenderError as error:
            refused.append(Refused(row.id, error.reason, str(error)))
    return Encoded(pa.Table.from_pylist(made, schema=SCHEMA), max_length, tuple(refused))


def mask_lines(tokenizer: Any, ids: Sequence[int], labels: Sequence[int]) -> list[str]:
    """Return the mask of a row as lines for a person: runs of tokens in and outside of the loss with their text.

    Args:
        tokenizer: the student's.
        ids: the tokens of the row.
        labels: their labels; `IGNORED` for tokens outside of the loss.

    Raises:
        ValueError: when a label is neither its token nor `IGNORED`.
    """
    lines = []
    for supervised, run in groupby(zip(ids, labels, strict=True), lambda pair: pair[1] != IGNORED):
        pairs = list(run)
        if supervised and any(token != label for token, label in pairs):
            raise ValueError("a label is neither the token at its place nor the mark of a token outside of the loss")
        text = tokenizer.decode([token for token, _ in pairs], clean_up_tokenization_spaces=False)
        word = "in the loss" if supervised else "not in it"
        lines.append(f"{word:<11} {len(pairs):>6} tokens: {json.dumps(text, ensure_ascii=False)}")
    return lines


def digest_of_rows(table: pa.Table) -> str:
    """Return the sha256 of the contents of a table of encoded rows, however they are stored."""
    running = hashlib.sha256()
    for name in table.column_names:
        running.update(f"{name}:{len(table)}\n".encode())
        for part in _bytes_of(table[name]):
            running.update(len(part).to_bytes(8, "big"))
            running.update(part)
    return running.hexdigest()


def _bytes_of(column: pa.ChunkedArray) -> Iterator[bytes]:
    if pa.types.is_string(column.type):
        yield from (text.encode("utf-8", "surrogatepass") for text in column.to_pylist())
    elif pa.types.is_list(column.type):
        yield pc.list_value_length(column).to_numpy().astype("<i8").tobytes()
        yield pc.list_flatten(column).to_numpy().astype("<i8").tobytes()
    else:
        yield column.to_numpy().astype("<i8").tobytes()


def _encoded(row: TrainingRow, renderer: Renderer, max_length: int) -> dict[str, Any]:
    if row.last["role"] != "assistant":
        raise RenderError("not_the_assistant", f"the last message is by {row.last['role']!r}")
    for message in (*row.before, row.last):
        for text in (message.get("content"), message.get("reasoning_content")):
            if found := renderer.control_token_in(str(text or "")):
                # The template's own tokens and those that a text spells would be the same in the row.
                raise RenderError("control_token_inside", f"a message contains the control token {found!r}")
    rendered = renderer.conversation(row.before, row.last)
    renderer.check_mask(rendered)
    stop = min(rendered.stop, max_length)
    cut = stop < rendered.stop
    if stop <= rendered.first:
        detail = f"its prompt has {rendered.first} tokens, which leaves none of {max_length} for the loss"
        raise RenderError("prompt_too_long", detail)
    ids = rendered.ids[:max_length]
    labels = np.full(len(ids), IGNORED, np.int32)
    labels[rendered.first : stop] = ids[rendered.first : stop]
    return {
        "id": row.id,
        "problem_id": row.problem_id,
        "input_ids": ids,
        "labels": labels,
        "tokens": stop - rendered.first,
        "cut": cut,
        "answer_lost": cut and int(rendered.ends[stop - rendered.first - 1]) < _answer_end(row, rendered),
    }


def _answer_end(row: TrainingRow, rendered: Rendered) -> int:
    """Return where the answer ends in the text of the assistant's turn."""
    reasoning, answer = (part.strip() for part in parts(row.last))
    return rendered.text.find(answer, rendered.body_start + len(reasoning)) + len(answer)
