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
        pa.field("confidence", pa.float64()),
        *(pa.field(name, pa.string(), nullable=False) for name in ("method", "verifier", "version")),
        pa.field("detail", pa.string()),
    ]
)


class Type(StrEnum):
    """The type of the values of a column."""

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
"""The types whose values are measures. Values of the other types are fields."""


class Column(Frozen):
    """One column, or, with a `*` in its name, all columns whose names are known only from the rows.

    `direction` tells whether lower or higher values are better, "" if neither; `source` is the paper or rule that
    defines the values. `about` tells whether a value describes the text of the row, so that a pruned or rewritten row
    does not inherit it, or the problem.
    """

    name: str
    type: Type = Type.NUMBER
    description: str = ""
    unit: str = ""
    direction: Literal["lower", "higher", ""] = ""
    source: str = ""
    about: Literal["text", "problem"] = "text"

    def covers(self, name: str) -> bool:
        """Tell whether this column, or pattern of columns, matches a name, which may contain a `*` too."""
        return fnmatchcase(name, self.name) or fnmatchcase(self.name, name)


VERDICT = Column(name="verdict", type=Type.VERDICT, description="Whether the answer is right, and by which rule.")
DERIVATION = Column(name="derivation", type=Type.JSON, description="How a pruned trace came from its parent.")


def column_like(name: str, value: object) -> Column:
    """Return a column for a value without a declared column, which occurs in tests and when one row is displayed.

    Args:
        name: the name of the column.
        value: a value, which determines the type of the column.
    """
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
    """Return the declared column for a name. An exact name is preferred to a pattern.

    Args:
        name: the name of a value.
        declared: the columns that stages declare.

    Raises:
        KeyError: when no column is declared for the name, which is a defect of the stage that adds the value.
    """
    found = [one for one in declared if fnmatchcase(name, one.name)]
    if not found:
        raise KeyError(f"no column {name!r} is declared")
    exact = min(found, key=lambda one: (one.name != name, one.name))
    return exact.model_copy(update={"name": name})
