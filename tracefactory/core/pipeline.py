"""A pipeline as data: names looked up, values checked, overlays applied. `config` reads it from YAML."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Generic, Literal, Protocol, TypeVar

from pydantic import ConfigDict, Field, SerializeAsAny, field_validator

from tracefactory.core.model import ModelSpec
from tracefactory.core.plugins import ProjectPlugins
from tracefactory.core.refs import find_refs
from tracefactory.core.rows import Frozen

P = TypeVar("P", bound=Frozen)


class Project(Frozen):
    """The folders of a project. Only `pipelines` is sure to exist.

    `state_dir` holds what was paid for and computed; `out_dir` holds the datasets.
    """

    root: Path
    state_dir: Path

    @property
    def pipelines(self) -> Path:
        return self.root / "pipelines"

    @property
    def prompts(self) -> Path:
        return self.root / "prompts"

    @property
    def filters(self) -> Path:
        return self.root / "filters"

    @property
    def out_dir(self) -> Path:
        return self.root / "out"


class StageOptions(Frozen):
    """How a stage is run. Nothing here can change its rows, so nothing of it is in a key."""

    concurrency: int | None = Field(
        default=None, ge=1, description="Shards of this stage that are worked on at once; null leaves it to the engine."
    )


class RunOptions(Frozen):
    """How a pipeline is run. Nothing here can change its rows, so nothing of it is in a key."""

    executor: Literal["auto", "ray", "inline"] = Field(
        default="auto",
        description="Ray actors, or everything in one process; auto takes Ray for a cluster, for models with workers "
        "or GPUs of their own, and on machines with more than four CPUs.",
    )
    workers: int | None = Field(default=None, ge=1, description="CPU worker processes; null is one per CPU.")
    ray_address: str | None = Field(
        default=None, description="The Ray cluster to join; null starts one on this machine."
    )
    shards: int | None = Field(
        default=None, description="Parts that problems are split into, a power of two; auto goes by their number."
    )

    @field_validator("shards", mode="before")
    @classmethod
    def _power_of_two(cls, shards: Any) -> Any:
        if shards in (None, "auto"):
            return None
        if type(shards) is not int or shards < 1 or shards & (shards - 1):
            raise ValueError(f"must be 'auto' or a power of two, found {shards!r}")
        return shards


class StageSpec(Frozen, Generic[P]):
    """One stage as it is configured: which operation, on the rows of which stages, with which parameters.

    `inputs` are stage ids in the order of `from:`; `params` is an instance of the operation's `Params`, defaults filled
    in; `file` and `line` say where the stage was written.
    """

    id: str
    verb: str
    name: str
    inputs: tuple[str, ...] = ()
    params: SerializeAsAny[P]
    run: StageOptions = StageOptions()
    file: Path
    line: int

    @property
    def op(self) -> str:
        """The operation's name in the registry, such as "sample:chat"."""
        return f"{self.verb}:{self.name}"

    @property
    def model_names(self) -> tuple[str, ...]:
        """The names of the models that the parameters refer to."""
        return tuple(found.name for found in find_refs(type(self.params), self.params) if found.kind == "model")


AnyStageSpec = StageSpec[Any]
"""A stage of any parameters; pydantic files the class in this module when it is made here, so that it pickles."""


class PromptTemplate(Protocol):
    """What a stage sees of a prompt; see `text.prompts`."""

    @property
    def name(self) -> str: ...

    @property
    def style(self) -> str: ...

    @property
    def prefill(self) -> str | None: ...

    @property
    def digest(self) -> str:
        """The digest of what decides the messages."""
        ...

    @property
    def variables(self) -> frozenset[str]:
        """The names that must have a value when the prompt is rendered."""
        ...

    @property
    def opened_in_prompt(self) -> bool:
        """Whether a completion starts inside of a thinking block."""
        ...

    def render(self, **values: Any) -> list[dict[str, str]]:
        """Return the messages."""
        ...


class Pipeline(Frozen):
    """One pipeline, ready to be planned: profile and `--set` applied, every name it uses known to exist.

    `limit` restricts every source to its first rows; `prompts`, `filters` and `plugins` are all those of the project,
    the plugins as their sources by path.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    name: str
    version: str
    description: str = ""
    models: Mapping[str, SerializeAsAny[ModelSpec]]
    stages: tuple[StageSpec[Any], ...]
    run: RunOptions
    file: Path
    project: Project
    limit: int | None = None
    profile: str | None = None
    prompts: Mapping[str, Any]
    filters: Mapping[str, Any]
    plugins: Mapping[str, str] = Field(default_factory=dict)

    @property
    def project_plugins(self) -> ProjectPlugins:
        """The plugins and the root of their project; see `core.plugins.activate`."""
        return ProjectPlugins(self.project.root, self.plugins)

    def __reduce__(self) -> tuple[Any, ...]:
        # The plugins come first: parameters and models that follow are of classes that the plugins define.
        return _unpickled, (self.project_plugins, type(self), self.__getstate__())

    def stage(self, stage_id: str) -> StageSpec[Any]:
        """Return the stage called `stage_id`; KeyError when there is none."""
        for stage in self.stages:
            if stage.id == stage_id:
                return stage
        raise KeyError(stage_id)

    def above(self, stage: StageSpec[Any]) -> list[StageSpec[Any]]:
        """Return every stage whose rows come to `stage`, each once, in the order of the pipeline."""
        wanted = set(stage.inputs)
        for one in reversed(self.stages):
            if one.id in wanted:
                wanted.update(one.inputs)
        return [one for one in self.stages if one.id in wanted]

    def prompt(self, name: str) -> PromptTemplate:
        """Return the prompt called `name`."""
        found: PromptTemplate = self.prompts[name]
        return found


def _unpickled(plugins: ProjectPlugins, kind: type[Pipeline], state: dict[Any, Any]) -> Pipeline:
    made = kind.__new__(kind)
    made.__setstate__(state)
    return made
