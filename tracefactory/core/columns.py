"""Typed columns that stages add to rows: verdicts, measures, parsed fields.

A stage declares its columns (`Stage.columns`), so that their names can be checked before a run and their meaning can be
printed on the card. Numbers arrive in `Trace.measures`, texts and lists in `Trace.fields`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import StrEnum
from fnmatch import fnmatchcase
from typing import Literal

import pyarrow as pa

from tracefactory.core.rows import Frozen

VERDICT_TYPE = pa.struct(
    [
        pa.field("outcome", pa.string(), nullable=False),
        pa.field("extracted", pa.string()),
        pa.field("span_start", pa.int64()),
        pa.field("span_end", pa.int64()),
        *(pa.field(name, pa.string(), nullable=False) for name in ("method", "verifier", "version")),
        pa.field("detail", pa.string()),
    ]
)


class Type(StrEnum):
    """What the values of a column are."""

    NUMBER = "number"
    INTEGER = "integer"
    BOOLEAN = "boolean"
    TEXT = "text"
    TEXTS = "texts"
    NUMBERS = "numbers"
    JSON = "json"
    VERDICT = "verdict"


ARROW: Mapping[Type, pa.DataType] = {
    Type.NUMBER: pa.float64(),
    Type.INTEGER: pa.int64(),
    Type.BOOLEAN: pa.bool_(),
    Type.TEXT: pa.string(),
    Type.TEXTS: pa.list_(pa.string()),
    Type.NUMBERS: pa.list_(pa.float64()),
    Type.JSON: pa.string(),
    Type.VERDICT: VERDICT_TYPE,
}
MEASURED = frozenset({Type.NUMBER, Type.INTEGER, Type.BOOLEAN})
"""The types whose values are measures; the others are fields."""


class Column(Frozen):
    """One column, or with a `*` in its name all columns whose names are only known from the rows.

    `direction` says which end is better, "" where neither is; `source` is the paper or rule that defines the values.
    `about` says what a value belongs to: the text of the row, so that a pruned or rewritten row does not have it, or
    the problem.
    """

    name: str
    type: Type = Type.NUMBER
    description: str = ""
    unit: str = ""
    direction: Literal["lower", "higher", ""] = ""
    source: str = ""
    about: Literal["text", "problem"] = "text"

    def covers(self, name: str) -> bool:
        """Tell whether `name`, which may hold a `*` itself, is this column or one of these columns."""
        return fnmatchcase(name, self.name) or fnmatchcase(self.name, name)


VERDICT = Column(name="verdict", type=Type.VERDICT, description="Whether the answer is right, and by which rule.")
DERIVATION = Column(name="derivation", type=Type.JSON, description="How a pruned trace came from its parent.")


def column_like(name: str, value: object) -> Column:
    """Return a column for a value whose column nobody declared: in tests, and where one row is looked at alone."""
    if name in (VERDICT.name, DERIVATION.name):
        return VERDICT if name == VERDICT.name else DERIVATION
    if isinstance(value, tuple):
        kind = Type.TEXTS if all(isinstance(one, str) for one in value) else Type.NUMBERS
    else:
        kind = (
            Type.BOOLEAN if isinstance(value, bool) else Type.NUMBER if isinstance(value, (int, float)) else Type.TEXT
        )
    return Column(name=name, type=kind)


def column_for(name: str, declared: Iterable[Column]) -> Column:
    """Return the declared column that `name` belongs to, an exact name before a pattern.

    Raises:
        KeyError: when no column is declared for it: a mistake in the stage that gives the value.
    """
    found = [one for one in declared if fnmatchcase(name, one.name)]
    if not found:
        raise KeyError(f"no column {name!r} is declared")
    exact = min(found, key=lambda one: (one.name != name, one.name))
    return exact.model_copy(update={"name": name})
