"""A pipeline as the engine sees it: names looked up, values checked, overlays applied, nothing left to interpret."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import ConfigDict, Field, SerializeAsAny, field_validator

from tracefactory.config.project import Project
from tracefactory.config.refs import find_refs
from tracefactory.core.schema import Frozen
from tracefactory.filters import FilterSet
from tracefactory.serving.base import ModelSpec
from tracefactory.text.prompts import Prompt

if TYPE_CHECKING:
    from tracefactory.core.op import Op
    from tracefactory.core.registry import Registry

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"  # a folder's name, and part of a tag on the Hub
ID_PATTERN = r"^[a-z][a-z0-9]*([_-][a-z0-9]+)*$"


def operations() -> Registry[Op]:
    """Return every operation by "verb:name"."""
    # Imported here because the modules that define the operations import the configuration.
    from tracefactory.stages import OPS

    return OPS


class StageOptions(Frozen):
    """How a stage is run. Nothing here can change its rows, so nothing of it is in a key.

    `concurrency` is the number of shards at work at once; None leaves it to the engine.
    """

    concurrency: int | None = Field(default=None, ge=1)


class RunOptions(Frozen):
    """How a pipeline is run. Nothing here can change its rows, so nothing of it is in a key.

    `workers` is the number of CPU worker processes (None: one per CPU); `ray_address` is the cluster to join (None: one
    of our own on this machine); `shards` is how many parts the problems are split into, a power of two, or None (in a
    file: `auto`) for as many as their number asks for.
    """

    executor: Literal["ray", "inline"] = "ray"
    workers: int | None = Field(default=None, ge=1)
    ray_address: str | None = None
    shards: int | None = None

    @field_validator("shards", mode="before")
    @classmethod
    def _power_of_two(cls, shards: Any) -> Any:
        if shards in (None, "auto"):
            return None
        if type(shards) is not int or shards < 1 or shards & (shards - 1):
            raise ValueError(f"must be 'auto' or a power of two, found {shards!r}")
        return shards


class StageConfig(Frozen):
    """One stage: which operation, on the rows of which stages, with which parameters.

    `inputs` are stage ids in the order of `from:`; `params` is an instance of the operation's `Params`, defaults filled
    in; `file` and `line` say where the stage was written.
    """

    id: str
    verb: str
    name: str
    inputs: tuple[str, ...] = ()
    params: SerializeAsAny[Frozen]
    run: StageOptions = StageOptions()
    file: Path
    line: int

    @property
    def op(self) -> Op:
        """The operation, such as the one registered as "sample:chat"."""
        return operations().get(f"{self.verb}:{self.name}")

    @property
    def model_names(self) -> tuple[str, ...]:
        """The names of the models that the parameters refer to."""
        return tuple(found.name for found in find_refs(type(self.params), self.params) if found.kind == "model")


class Pipeline(Frozen):
    """One pipeline, ready to be planned: profile and `--set` applied, every name it uses known to exist.

    `limit` restricts every source to its first rows; `prompts` and `filters` are all those of the project.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    name: str
    version: str
    description: str = ""
    models: Mapping[str, SerializeAsAny[ModelSpec]]
    stages: tuple[StageConfig, ...]
    run: RunOptions
    file: Path
    project: Project
    limit: int | None = None
    profile: str | None = None
    prompts: Mapping[str, Prompt]
    filters: FilterSet

    def stage(self, stage_id: str) -> StageConfig:
        """Return the stage called `stage_id`; KeyError when there is none."""
        for stage in self.stages:
            if stage.id == stage_id:
                return stage
        raise KeyError(stage_id)


def resolved(pipeline: Pipeline) -> dict[str, Any]:
    """Return the pipeline as plain JSON data: overlays applied, defaults written out, secrets still "env:NAME".

    Besides `profile` and `limit` it has the keys of a pipeline file, and read as one it is the same pipeline.
    """
    head = {"name": pipeline.name, "version": pipeline.version, "description": pipeline.description}
    return {
        **head,
        "profile": pipeline.profile,
        "limit": pipeline.limit,
        "models": {name: plain(spec) for name, spec in pipeline.models.items()},
        "stages": [_resolved_stage(stage) for stage in pipeline.stages],
        "run": plain(pipeline.run),
    }


def plain(model: Frozen) -> dict[str, Any]:
    """Return a model as plain JSON data under the keys it is written with in a file."""
    return model.model_dump(mode="json", by_alias=True)


def _resolved_stage(stage: StageConfig) -> dict[str, Any]:
    head = {"id": stage.id, **({"from": list(stage.inputs)} if stage.inputs else {})}
    params, run = plain(stage.params), plain(stage.run)
    if stage.verb == "filter":
        return {**head, "filter": [{use["name"]: use["with"]} for use in params["filters"]], "run": run}
    return {**head, stage.verb: stage.name, "with": params, "run": run}
