"""References: parameters that are names of models, prompts or stages."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import UnionType
from typing import Annotated, Any, NamedTuple, Union, get_args, get_origin

from pydantic import BaseModel, GetJsonSchemaHandler
from pydantic_core import core_schema

REFERS = "x-refers-to"
"""The key of a JSON Schema with the kind of thing that a name refers to."""

Path = tuple[str | int, ...]
"""The path of a value in a model: names of fields and indices in lists."""


@dataclass(frozen=True)
class Ref:
    """Marks a parameter as the name of a model, prompt or stage, so that the configuration can be checked."""

    kind: str  # "model" | "prompt" | "stage"

    def __get_pydantic_json_schema__(
        self, core_schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return {**handler(core_schema), REFERS: self.kind}


class FoundRef(NamedTuple):
    """A reference: its kind ("model", "prompt", "stage"), the name, and the path of the parameter."""

    kind: str
    name: str
    path: Path


def find_refs(model: type[BaseModel], params: BaseModel | Mapping[str, Any]) -> list[FoundRef]:
    """Return the values of all fields marked with `Ref`, also inside lists, mappings and models.

    Args:
        model: the model of the parameters.
        params: an instance of it, or the plain data from the file if that data is not valid.
    """
    return list(dict.fromkeys(_in_model(model, params, ())))


def _in_model(model: type[BaseModel], values: BaseModel | Mapping[str, Any], path: Path) -> Iterator[FoundRef]:
    for name, field in model.model_fields.items():
        key = field.alias or name
        value = getattr(values, name) if isinstance(values, BaseModel) else values.get(key, field.default)
        yield from _in_value(field.annotation, field.metadata, value, (*path, key))


def _in_value(annotation: Any, metadata: Any, value: Any, path: Path) -> Iterator[FoundRef]:
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        yield from _in_value(args[0], (*metadata, *args[1:]), value, path)
    elif origin in (Union, UnionType):
        for arg in args:
            yield from _in_value(arg, metadata, value, path)
    elif isinstance(value, str):
        yield from (FoundRef(mark.kind, value, path) for mark in metadata if isinstance(mark, Ref))
    elif isinstance(value, BaseModel):
        yield from _in_model(type(value), value, path)
    elif isinstance(value, Mapping) and isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield from _in_model(annotation, value, path)
    elif isinstance(value, Mapping) and len(args) == 2:
        for key, item in value.items():
            yield from _in_value(args[0], (), key, (*path, key))
            yield from _in_value(args[1], (), item, (*path, key))
    elif isinstance(value, (tuple, list)) and args:
        fixed = origin is tuple and args[-1] is not Ellipsis
        for index, item in enumerate(value[: len(args)] if fixed else value):
            yield from _in_value(args[index] if fixed else args[0], (), item, (*path, index))
