"""Descriptions of everything that is registered, derived from the code: parameters, columns, docstrings."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, JsonValue
from pydantic_core import to_jsonable_python

from tracefactory.cli.catalog.example import example_columns
from tracefactory.cli.catalog.types import type_of
from tracefactory.core.budget import Budget
from tracefactory.core.columns import Column
from tracefactory.core.errors import Mistake, UserError, nearest
from tracefactory.core.pipeline import RunOptions, SandboxOptions
from tracefactory.core.registry import FAMILIES, kinds, registry
from tracefactory.core.rows import Frozen
from tracefactory.core.teach import Teach

SECTIONS: Mapping[str, type[BaseModel]] = {
    "budget": Budget,
    "run": RunOptions,
    "sandbox": SandboxOptions,
    "teach": Teach,
}
"""The sections of a pipeline file that are one mapping of options each."""

# How an entry of each kind is written in a pipeline file.
_WRITTEN = {
    "operation": "{verb}: {name}",
    "decoder": "sample: {name}",
    "pruner": "prune: {name}",
    "rollout": "rollout: {name}",
    "source": "source: {name}",
    "model": "use: {name}",
    "verifier": "verifier: {name}",
    "view": "views: [{name}]",
}


class Parameter(Frozen):
    """One parameter, or one column of a view. `parameters` are those of the mapping that it takes."""

    name: str
    type: str
    required: bool
    default: JsonValue = None
    description: str
    parameters: tuple[Parameter, ...] = ()


class Entry(Frozen):
    """One registered entry.

    `written` is its form in a pipeline file; `origin` is "built in", "project" or the module of an installed package.
    `columns` are the columns that an operation adds to rows, with placeholders such as `<student>` in their names.
    """

    kind: str
    name: str
    written: str
    origin: str
    version: str
    summary: str
    description: str
    parameters: tuple[Parameter, ...]
    columns: tuple[Column, ...] = ()


class Measure(Frozen):
    """One column that operations add to rows, and the operations that add it."""

    name: str
    type: str
    unit: str
    direction: str
    source: str
    description: str
    operations: tuple[str, ...]


def entries(kind: str | None = None) -> list[Entry]:
    """Return the entries of one kind, or of all kinds, sorted by kind and name; then the sections of a pipeline."""
    wanted = kinds() if kind is None else (kind,)
    sections = SECTIONS if kind is None else ()
    return [_entry(one, name) for one in wanted for name in registry(one)] + [_section(name) for name in sections]


def measures(found: Sequence[Entry]) -> list[Measure]:
    """Return the columns of all entries, each name once."""
    columns: dict[str, tuple[Column, list[str]]] = {}
    for entry in found:
        for column in entry.columns:
            columns.setdefault(column.name, (column, []))[1].append(entry.name)
    return [
        Measure(
            name=name,
            type=column.type.value,
            unit=column.unit,
            direction=column.direction,
            source=column.source,
            description=column.description,
            operations=tuple(operations),
        )
        for name, (column, operations) in sorted(columns.items())
    ]


def named(name: str) -> list[Entry]:
    """Return all entries that have a name, such as "sample:chat", "sample: chat", "chat", "verifier:math" or "math".

    Raises:
        UserError: with the nearest valid name.
    """
    wanted = name.replace(" ", "")
    labels = {
        (kind, one): (one, f"{kind}:{one}", one.partition(":")[2] if kind == "operation" else one)
        for kind in kinds()
        for one in registry(kind)
    }
    found = [_entry(*key) for key, texts in labels.items() if wanted in texts]
    found += [_section(one) for one in SECTIONS if wanted.removesuffix(":") == one]
    if not found:
        known = {text for texts in labels.values() for text in texts} | SECTIONS.keys()
        raise UserError(Mistake(f"nothing is registered as {name!r}", hint=nearest(wanted, known)))
    return found


def parameters_of(model: type[BaseModel], left_out: frozenset[str] = frozenset()) -> tuple[Parameter, ...]:
    """Return the fields of a model as parameters.

    Args:
        model: the model.
        left_out: the names of fields that are not parameters.
    """
    schema = model.model_json_schema(by_alias=True, mode="validation")
    defs: Mapping[str, Any] = schema.get("$defs", {})
    found: list[Parameter] = []
    for name, field in model.model_fields.items():
        if name in left_out or field.exclude:
            continue
        key = field.alias or name
        default = None if field.is_required() else field.get_default(call_default_factory=True)
        inner = _model_in(field.annotation)
        parameter = Parameter(
            name=key,
            type=type_of(schema["properties"][key], defs) if key in schema.get("properties", {}) else "any",
            required=field.is_required(),
            default=to_jsonable_python(default),
            description=field.description or "",
            parameters=() if inner is None else parameters_of(inner),
        )
        found.append(parameter)
    return tuple(found)


def _entry(kind: str, name: str) -> Entry:
    where = registry(kind)
    entry: Any = where.get(name)
    verb, _, own = name.rpartition(":")
    text = _documentation(kind, name, entry)
    if kind in ("pruner", "decoder", "rollout", "model"):
        parameters = parameters_of(entry, frozenset({"use"}))
    else:
        parameters = parameters_of(entry.row if kind == "view" else entry.Params)
    return Entry(
        kind=kind,
        name=name,
        written="filter: [names]" if name == "filter:chain" else _WRITTEN[kind].format(verb=verb, name=own),
        origin=where.origin(name),
        version=getattr(entry, "version", ""),
        summary=text.partition("\n\n")[0],
        description=text,
        parameters=parameters,
        columns=tuple(example_columns(name)) if kind == "operation" else (),
    )


def _section(name: str) -> Entry:
    text = _plain(SECTIONS[name])
    return Entry(
        kind="section",
        name=name,
        written=f"{name}:",
        origin="built in",
        version="",
        summary=text.partition("\n\n")[0],
        description=text,
        parameters=parameters_of(SECTIONS[name]),
    )


def _documentation(kind: str, name: str, entry: Any) -> str:
    """Return the docstring of an entry, one line per paragraph.

    An operation that is made from an entry of another kind has the docstring of that entry.
    """
    verb, _, own = name.partition(":")
    if kind == "operation" and verb in FAMILIES and own in registry(FAMILIES[verb]):
        return _documentation(FAMILIES[verb], own, registry(FAMILIES[verb]).get(own))
    if kind == "view":
        return str(entry.summary)
    return _plain(entry if isinstance(entry, type) else type(entry))


def _plain(documented: type) -> str:
    """Return a docstring, one line per paragraph."""
    paragraphs = inspect.cleandoc(documented.__doc__ or "").split("\n\n")
    return "\n\n".join(" ".join(one.split()) for one in paragraphs)


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """Return the model that a parameter takes, alone, in a list or as an option."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    inner = (_model_in(one) for one in getattr(annotation, "__args__", ()))
    return next((one for one in inner if one is not None), None)
