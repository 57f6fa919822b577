"""What each stage of a pipeline is made from, and so its key; and where its rows are."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tracefactory.core.keys import KEY_VERSION, stage_key
from tracefactory.core.pipeline import Pipeline
from tracefactory.core.rows import Frozen
from tracefactory.core.stage import kinds_of, stage_of
from tracefactory.store.rows import StageRows
from tracefactory.store.stages import StageFolder


class Identity(Frozen):
    """A stage's key, what it was made from, and all parameters with their defaults, for people to read."""

    key: str
    content: Mapping[str, Any]
    parameters: Mapping[str, Any]

    def stored(self) -> dict[str, Any]:
        """Return what is written into the stage's folder."""
        return {"key_version": KEY_VERSION, **self.content, "parameters": dict(self.parameters)}


def identities(pipeline: Pipeline) -> dict[str, Identity]:
    """Return the key of every stage: of operation, version, parameters, what they use, and the keys of the inputs."""
    found: dict[str, Identity] = {}
    for stage in pipeline.stages:
        op = stage_of(stage)
        content = {
            "id": stage.id,
            "op": stage.op,
            "version": op.version,
            "with": dict(op.key_params(stage, pipeline)),
            "uses": dict(op.uses(stage, pipeline)),
            "inputs": {source: found[source].key for source in stage.inputs},
        }
        parameters = stage.params.model_dump(mode="json", by_alias=True)
        found[stage.id] = Identity(key=stage_key(content), content=content, parameters=parameters)
    return found


def rows_of(
    stage_id: str, pipeline: Pipeline, root: Path, keys: Mapping[str, str], layouts: Mapping[str, int]
) -> StageRows:
    """Return the rows of a stage; `layouts` says how many shards it and the stages above it have."""
    stage = pipeline.stage(stage_id)
    op = stage_of(stage)
    return StageRows(
        folder=StageFolder(root, stage_id, keys[stage_id]),
        shards=layouts[stage_id],
        gives=kinds_of(pipeline)[stage_id],
        makes=op.makes,
        judges=op.judges,
        # In the order they are read back from disk: it decides whose value a row has that comes twice.
        inputs=tuple(rows_of(source, pipeline, root, keys, layouts) for source in sorted(stage.inputs)),
    )
