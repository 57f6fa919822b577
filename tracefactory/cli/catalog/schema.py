"""The JSON Schema of a pipeline file, for editors: models by `use:`, stages by verb and name with their `with:`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from tracefactory.cli.catalog.entries import SECTIONS, Entry, entries
from tracefactory.config.model import ID_PATTERN, NAME_PATTERN
from tracefactory.core.model import MODELS
from tracefactory.core.pipeline import RunOptions, StageOptions
from tracefactory.core.stage import STAGES
from tracefactory.filters import LoadedFilter

Schema = dict[str, Any]
_NOTHING: Schema = {"type": "null"}


def pipeline_schema(filters: Mapping[str, LoadedFilter] | None = None) -> Schema:
    """Return the JSON Schema of a pipeline file.

    Args:
        filters: the filters of a project; None outside of a project, where every name of a filter is accepted.
    """
    models = {name: MODELS.get(name) for name in MODELS}
    operations = {name: STAGES.get(name).Params for name in STAGES if not name.startswith("filter:")}
    of_filters = {name: one.params_model for name, one in (filters or {}).items()}
    named: list[type[BaseModel]] = [*models.values(), *operations.values(), *of_filters.values()]
    named += [*SECTIONS.values(), StageOptions]
    refs, definitions = models_json_schema([(one, "validation") for one in dict.fromkeys(named)])

    def ref(model: type[BaseModel]) -> Schema:
        return dict(refs[model, "validation"])

    described = {(one.kind, one.name): one for kind in ("model", "operation") for one in entries(kind)}
    run = definitions["$defs"][ref(RunOptions)["$ref"].rpartition("/")[2]]
    run["properties"]["shards"]["anyOf"].append({"const": "auto"})  # its validator also accepts this word
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A tracefactory pipeline",
        "type": "object",
        "properties": {
            "name": {"type": "string", "pattern": NAME_PATTERN, "description": "Name of the pipeline and its dataset."},
            "version": {"type": "string", "pattern": NAME_PATTERN, "description": "Version of the dataset, quoted."},
            "description": {"type": "string"},
            **{name: ref(one) for name, one in SECTIONS.items()},
            "models": {
                "type": ["object", "null"],
                "additionalProperties": _model({name: ref(one) for name, one in models.items()}, described),
            },
            "stages": {
                "type": "array",
                "minItems": 1,
                "items": _stage(
                    {
                        name: (ref(one), any(field.is_required() for field in one.model_fields.values()))
                        for name, one in operations.items()
                    },
                    {name: ref(one) for name, one in of_filters.items()} if filters is not None else None,
                    ref(StageOptions),
                    described,
                ),
            },
            "profiles": {
                "type": "object",
                "additionalProperties": {"type": "object"},
                "description": "Values that replace those of the file when the profile is chosen; stages by id.",
            },
        },
        "required": ["name", "version", "stages"],
        "additionalProperties": False,
        **definitions,
    }


def _model(refs: Mapping[str, Schema], described: Mapping[tuple[str, str], Entry]) -> Schema:
    return {
        "type": "object",
        "properties": {"use": _one_of({name: described["model", name].summary for name in refs})},
        "required": ["use"],
        "allOf": [_when("use", name, ref) for name, ref in refs.items()],
    }


def _stage(
    operations: Mapping[str, tuple[Schema, bool]],
    filters: Mapping[str, Schema] | None,
    options: Schema,
    described: Mapping[tuple[str, str], Entry],
) -> Schema:
    verbs: dict[str, dict[str, str]] = {}
    cases: list[Schema] = []
    for op, (ref, required) in operations.items():
        verb, _, name = op.partition(":")
        verbs.setdefault(verb, {})[name] = described["operation", op].summary
        then: Schema = {"properties": {"with": ref if required else {"anyOf": [ref, _NOTHING]}}}
        cases.append(_when(verb, name, {**then, **({"required": ["with"]} if required else {})}))
    for name, ref in (filters or {}).items():
        cases.append(_when("filter", name, {"properties": {"with": {"anyOf": [ref, _NOTHING]}}}))
    names: Schema = {"type": "string"}
    return {
        "type": "object",
        "properties": {
            "id": {"type": "string", "pattern": ID_PATTERN, "description": "Name of the stage."},
            "from": {
                "anyOf": [names, {"type": "array", "items": names, "minItems": 1}],
                "description": "The stages whose rows it is given; by default the stage above.",
            },
            "with": {"type": ["object", "null"], "description": "Parameters of the operation."},
            "run": options,
            **{verb: _one_of(of) for verb, of in verbs.items()},
            "filter": _filters(filters),
        },
        "required": ["id"],
        "oneOf": [{"required": [verb]} for verb in (*verbs, "filter")],
        "allOf": cases,
        "additionalProperties": False,
    }


def _filters(refs: Mapping[str, Schema] | None) -> Schema:
    """Return the schema of `filter:`: a name, or a list of names and of names with parameters."""
    name: Schema = {"type": "string"} if refs is None else {"enum": sorted(refs)}
    with_parameters: Schema = {"type": "object", "minProperties": 1, "maxProperties": 1}
    if refs is not None:
        properties = {one: {"anyOf": [ref, _NOTHING]} for one, ref in refs.items()}
        with_parameters |= {"properties": properties, "additionalProperties": False}
    items = {"anyOf": [name, with_parameters]}
    return {"anyOf": [name, {"type": "array", "items": items, "minItems": 1}], "description": "The filters, in order."}


def _one_of(names: Mapping[str, str]) -> Schema:
    return {"oneOf": [{"const": name, "description": text} for name, text in names.items()]}


def _when(key: str, value: str, then: Schema) -> Schema:
    return {"if": {"properties": {key: {"const": value}}, "required": [key]}, "then": then}
