"""The identity of each stage of a pipeline, its key, and its rows."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tracefactory.core.keys import KEY_VERSION, stage_key
from tracefactory.core.pipeline import Pipeline
from tracefactory.core.plugins import activate
from tracefactory.core.rows import Frozen
from tracefactory.core.stage import kinds_of, stage_of
from tracefactory.store.rows import StageRows
from tracefactory.store.stages import StageFolder


class Identity(Frozen):
    """A stage's key, the content it is made from, and all parameters including defaults, for display."""

    key: str
    content: Mapping[str, Any]
    parameters: Mapping[str, Any]

    def stored(self) -> dict[str, Any]:
        """Return the content of `identity.json` in the stage's folder."""
        return {"key_version": KEY_VERSION, **self.content, "parameters": dict(self.parameters)}


def identities(pipeline: Pipeline) -> dict[str, Identity]:
    """Return the identity of every stage: operation, version, parameters, what they use, and the keys of the inputs."""
    activate(*pipeline.project_plugins)
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
    """Return the rows of a stage; `layouts` has the numbers of shards of this stage and the stages above it."""
    stage = pipeline.stage(stage_id)
    op = stage_of(stage)
    return StageRows(
        folder=StageFolder(root, stage_id, keys[stage_id]),
        shards=layouts[stage_id],
        gives=kinds_of(pipeline)[stage_id],
        makes=op.makes,
        judges=op.judges,
        # In the order of `stored_rows`: it determines the values of a row that is in several inputs.
        inputs=tuple(rows_of(source, pipeline, root, keys, layouts) for source in sorted(stage.inputs)),
    )
