"""Rows as Arrow tables, with declared schemas; nothing is ever inferred from data.

There are three tables. `problems` and `traces` hold the text of rows that a stage made. `judged` has one line for every
row that a stage made or was given: whether it is kept, why not, and the values of the columns that the stage declared
(`core.columns`). Tables are sorted by (problem_id, id); a problem's id is its own problem_id.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import StrEnum
from typing import Any

import polars as pl
import pyarrow as pa
from pydantic import BaseModel

from tracefactory.core.columns import ARROW, DERIVATION, VERDICT, Column, column_for, column_like
from tracefactory.core.decisions import Judgement, Made
from tracefactory.core.rows import Kind, Problem, Row, Trace, problem_id_of

_S, _I, _F, _B = pa.string(), pa.int64(), pa.float64(), pa.bool_()


class Table(StrEnum):
    """The tables of a stage's folder."""

    PROBLEMS = "problems"
    TRACES = "traces"
    JUDGED = "judged"


def _fields(required: str = "", optional: str = "", kind: pa.DataType = _S) -> list[pa.Field]:
    return [pa.field(name, kind, nullable=False) for name in required.split()] + [
        pa.field(name, kind) for name in optional.split()
    ]


KEYS = ("problem_id", "id")
"""What tables are sorted by."""

DECISION = [*_fields("kept failed owed", kind=_B), *_fields(optional="reason detail")]
TURN = pa.struct(
    [
        *_fields("role content reasoning name call_id"),
        pa.field("tool_calls", pa.list_(pa.struct(_fields("id name arguments")))),
    ]
)
PROBLEM = [
    *_fields("question", "answer"),
    pa.field("answers", pa.list_(_S)),
    pa.field("context", pa.list_(pa.struct(_fields("title text source")))),
    pa.field("tests", pa.list_(_S)),
    pa.field("tools", pa.list_(pa.struct(_fields("name description parameters")))),
    *_fields("verifier spec domain source licence meta"),
]
TRACE = [
    pa.field("parents", pa.list_(pa.struct([*_fields("id role"), pa.field("step", _I)]))),
    *_fields("op stage teacher model revision prompt prompt_digest style request_key", "system messages_digest"),
    *_fields("sample_index", "seed", _I),
    pa.field("temperature", _F),
    *_fields("reasoning answer_text"),
    pa.field("turns", pa.list_(TURN)),
    pa.field(
        "steps", pa.list_(pa.struct([*_fields("start end", kind=_I), *_fields("label source"), pa.field("value", _F)]))
    ),
    *_fields("thinking finish_reason", "refusal"),
    *_fields("prompt_tokens completion_tokens reasoning_characters answer_characters", kind=_I),
    *_fields(optional="cost", kind=_F),
]
REJECTED = pa.field("rejected", _S)
"""The text of what could not become a row, where a source found such."""

_OWN = {Table.PROBLEMS: [*PROBLEM, REJECTED], Table.TRACES: [*TRACE, REJECTED], Table.JUDGED: DECISION}
_COMPUTED: Mapping[str, Callable[[Trace], int]] = {
    "reasoning_characters": lambda trace: len(trace.reasoning),
    "answer_characters": lambda trace: len(trace.answer_text),
}
TABLE_OF = {Kind.PROBLEMS: Table.PROBLEMS, Kind.TRACES: Table.TRACES}
"""The table that holds the rows of a kind."""
DECISION_COLUMNS = frozenset(field.name for field in DECISION)
PLAIN_COLUMNS = DECISION_COLUMNS | {*KEYS}
"""The columns that the `judged` tables of all stages have; all others are declared."""
BUILT_IN = frozenset(field.name for fields in _OWN.values() for field in fields) | DECISION_COLUMNS | {*KEYS, "problem"}
"""Names that no declared column may have."""
_NOT_A_FIELD = DECISION_COLUMNS | _COMPUTED.keys() | {REJECTED.name, "problem_id"}


def schema_of(table: Table, columns: Iterable[Column] = ()) -> pa.Schema:
    """Return the schema of a table; `columns` are the declared ones that stand behind those of `judged`."""
    added = [pa.field(column.name, ARROW[column.type]) for column in columns]
    return pa.schema([*_fields(" ".join(KEYS)), *_OWN[table], *added])


def made_table(table: Table, made: Sequence[Made]) -> pa.Table:
    """Return the text of rows that a stage made, sorted; what was decided about them is in `judged_table`."""
    ordered = sorted(made, key=lambda one: (problem_id_of(one.row), one.row.id))
    rows = [one.row for one in ordered]
    arrays = {"problem_id": pa.array(map(problem_id_of, rows), _S), "id": pa.array([row.id for row in rows], _S)}
    for field in _OWN[table]:
        if field.name == REJECTED.name:
            values: list[Any] = [one.rejected for one in ordered]
        elif field.name in _COMPUTED:
            values = list(map(_COMPUTED[field.name], rows))
        else:
            values = _plain_all([getattr(row, field.name) for row in rows], field.type)
        arrays[field.name] = pa.array(values, field.type)
    return pa.Table.from_pydict(arrays, schema=schema_of(table))


def judged_table(
    judgements: Sequence[Judgement], problem_ids: Mapping[str, str], declared: Sequence[Column] = ()
) -> pa.Table:
    """Return the table of what a stage says of rows, sorted.

    Args:
        judgements: one for every row.
        problem_ids: the problem of every row, by the row's id.
        declared: the columns the values belong to; a `*` column gives one column for each name that has a value.
    """
    ordered = sorted(judgements, key=lambda one: (problem_ids[one.id], one.id))
    decisions = [one.decision for one in ordered]
    arrays = {
        "problem_id": pa.array([problem_ids[one.id] for one in ordered], _S),
        "id": pa.array([one.id for one in ordered], _S),
        "kept": pa.array([one.keep for one in decisions], _B),
        "failed": pa.array([one.failed for one in decisions], _B),
        "owed": pa.array([one.owed for one in decisions], _B),
        "reason": pa.array([one.reason for one in decisions], _S),
        "detail": pa.array([one.detail for one in decisions], _S),
    }
    names = {one.name for one in declared if "*" not in one.name}.union(*(one.values for one in ordered))
    columns = [column_for(name, declared) for name in sorted(names)]
    for column in columns:
        values = _plain_all([one.values.get(column.name) for one in ordered], ARROW[column.type])
        arrays[column.name] = pa.array(values, ARROW[column.type])
    return pa.Table.from_pydict(arrays, schema=schema_of(Table.JUDGED, columns))


def judgement_of(made: Made) -> Judgement:
    """Return what `judged` says of a row that a stage made: its decision, verdict, measures and fields."""
    row: Row = made.row
    values: dict[str, Any] = {**row.measures, **row.fields}
    if isinstance(row, Trace):
        values |= {} if row.verdict is None else {VERDICT.name: row.verdict}
        values |= {} if row.derivation == "{}" else {DERIVATION.name: row.derivation}
    return Judgement(row.id, made.decision, values)


def frame_of(rows: Sequence[Row]) -> pl.DataFrame:
    """Return rows as they would be read back: their own columns, verdict, measures and fields."""
    table = Table.TRACES if rows and isinstance(rows[0], Trace) else Table.PROBLEMS
    made = [Made(row) for row in rows]
    owners = {row.id: problem_id_of(row) for row in rows}
    values = [judgement_of(one) for one in made]
    declared = [column_like(name, value) for one in values for name, value in one.values.items()]
    declared += [VERDICT] if table is Table.TRACES else []  # rules look into it, also where no row has one
    judged = judged_table(values, owners, declared)
    columns = [name for name in judged.column_names if name not in BUILT_IN]
    return pl.concat([pl.DataFrame(made_table(table, made)), pl.DataFrame(judged.select(columns))], how="horizontal")


def problems_from(frame: pl.DataFrame) -> list[Problem]:
    """Return the problems of a frame; the columns that stages added become measures and fields."""
    sort = _sorter(frame.columns, Problem)
    return [Problem.model_validate({"answer": None, **sort(row)}) for row in frame.iter_rows()]


def traces_from(frame: pl.DataFrame, problems: Mapping[str, Problem]) -> list[Trace]:
    """Return the traces of a frame with their problems, which are given by id."""
    sort, owner = _sorter(frame.columns, Trace), frame.columns.index("problem_id")
    return [Trace.model_validate({**sort(row), "problem": problems[row[owner]]}) for row in frame.iter_rows()]


def _plain_all(values: list[Any], kind: pa.DataType) -> list[Any]:
    """Return values as pyarrow takes them; only those of nested types need any work."""
    return [_plain(value, kind) if value else None for value in values] if pa.types.is_nested(kind) else values


def _plain(value: Any, kind: pa.DataType) -> Any:
    """Return a value as pyarrow takes it for `kind`: models as mappings with just the members of the struct."""
    if isinstance(value, BaseModel) and pa.types.is_struct(kind):
        members = [kind.field(index) for index in range(kind.num_fields)]
        return {member.name: _plain(getattr(value, member.name), member.type) for member in members}
    if isinstance(value, (tuple, list)):
        return [_plain(item, kind.value_type) for item in value]
    return value


def _sorter(columns: Sequence[str], model: type[BaseModel]) -> Callable[[Sequence[Any]], dict[str, Any]]:
    """Return a function that sorts the values of a row into the fields of its model, measures and parsed fields.

    Null is the default of its field, and no measure; a cost that is null is unknown.
    """
    places = [(at, name) for at, name in enumerate(columns) if name not in _NOT_A_FIELD]
    own = [(at, name) for at, name in places if name in model.model_fields]
    others = [(at, name) for at, name in places if name not in model.model_fields]

    def sort(row: Sequence[Any]) -> dict[str, Any]:
        measures: dict[str, float] = {}
        fields: dict[str, Any] = {}
        for at, name in others:
            value = row[at]
            if isinstance(value, (float, int)):
                measures[name] = value
            elif value is not None:
                fields[name] = tuple(value) if isinstance(value, list) else value
        found = {name: row[at] for at, name in own if row[at] is not None or name == "cost"}
        return {**found, "measures": measures, "fields": fields}

    return sort
