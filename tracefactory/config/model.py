"""A pipeline as plain data, in the form of a pipeline file."""

from __future__ import annotations

from typing import Any

from tracefactory.core.pipeline import Pipeline, StageSpec
from tracefactory.core.rows import Frozen
from tracefactory.core.yamlfile import to_yaml

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"  # a folder's name, and part of a tag on the Hub
ID_PATTERN = r"^[a-z][a-z0-9]*([_-][a-z0-9]+)*$"


def resolved(pipeline: Pipeline) -> dict[str, Any]:
    """Return a pipeline as plain JSON data, with overlays and defaults; secrets are "env:NAME".

    Without `profile` and `limit` it is a valid pipeline file for the same pipeline.
    """
    return {
        "name": pipeline.name,
        "version": pipeline.version,
        "description": pipeline.description,
        "profile": pipeline.profile,
        "limit": pipeline.limit,
        "models": {name: plain(spec) for name, spec in pipeline.models.items()},
        "stages": [_resolved_stage(stage) for stage in pipeline.stages],
        "budget": plain(pipeline.budget),
        "run": plain(pipeline.run),
        "sandbox": plain(pipeline.sandbox),
        **({} if pipeline.teach is None else {"teach": plain(pipeline.teach)}),
    }


def resolved_file(pipeline: Pipeline) -> str:
    """Return a pipeline file for the same stages without profile and `--set`; every parameter is written out."""
    return to_yaml({key: value for key, value in resolved(pipeline).items() if key not in ("profile", "limit")})


def plain(model: Frozen) -> dict[str, Any]:
    """Return a model as plain JSON data with the keys of a pipeline file."""
    return model.model_dump(mode="json", by_alias=True)


def _resolved_stage(stage: StageSpec[Any]) -> dict[str, Any]:
    head = {"id": stage.id, **({"from": list(stage.inputs)} if stage.inputs else {})}
    params, run = plain(stage.params), plain(stage.run)
    if stage.verb == "filter":
        return {**head, "filter": [{use["name"]: use["with"]} for use in params["filters"]], "run": run}
    return {**head, stage.verb: stage.name, "with": params, "run": run}
