"""A pipeline as data: names resolved, values checked, overlays applied. `config` reads it from YAML."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Generic, Literal, Protocol, TypeVar, get_args

from pydantic import ConfigDict, Field, JsonValue, SerializeAsAny, field_validator

from tracefactory.core.budget import COUNTED, Budget, Cap
from tracefactory.core.environment import env_names
from tracefactory.core.model import ModelSpec
from tracefactory.core.plugins import ProjectPlugins
from tracefactory.core.refs import find_refs
from tracefactory.core.rows import Frozen
from tracefactory.core.teach import Teach

P = TypeVar("P", bound=Frozen)


class Project(Frozen):
    """The folders of a project. Only `pipelines` always exists.

    `state_dir` contains paid completions and computed stages; `out_dir` contains the datasets. `shared` is the URL of
    the object store that several machines share as their state, empty without one.
    """

    root: Path
    state_dir: Path
    shared: str = ""

    @property
    def pipelines(self) -> Path:
        """The folder of the pipeline files."""
        return self.root / "pipelines"

    @property
    def prompts(self) -> Path:
        """The folder of the prompts."""
        return self.root / "prompts"

    @property
    def filters(self) -> Path:
        """The folder of the filters."""
        return self.root / "filters"

    @property
    def out_dir(self) -> Path:
        """The folder of the datasets."""
        return self.root / "out"


class StageOptions(Frozen):
    """How a stage is run. These options cannot change its rows and are not in its key."""

    concurrency: int | None = Field(
        default=None, ge=1, description="Shards of this stage that are processed at once; null lets the engine choose."
    )
    max_error_rate: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="Share of its requests or rows that may fail before the run stops; null is that of the pipeline.",
    )


Protection = Literal["user", "files", "processes", "network", "system_calls", "memory", "process_count"]
"""What the sandbox protects, by name: `sandbox.protections` tells what each is, and measures it."""


class RunOptions(Frozen):
    """How a pipeline is run. These options cannot change its rows and are not in any key."""

    executor: Literal["auto", "ray", "inline"] = Field(
        default="auto",
        description="Ray actors, or everything in one process; auto chooses Ray for a cluster, for models with workers "
        "or GPUs, and on machines with more than four CPUs.",
    )
    workers: int | None = Field(default=None, ge=1, description="CPU worker processes; null is one per CPU.")
    gpus: int | None = Field(
        default=None,
        ge=1,
        description="GPUs that the run may hold at once; null is all of the machine or cluster. Stages whose models "
        "need more than that together take turns.",
    )
    ray_address: str | None = Field(
        default=None,
        description="The Ray cluster to join: HOST:PORT of its head, or auto for that of RAY_ADDRESS or of this "
        "machine; null starts one on this machine, except inside a Ray job.",
    )
    runtime_env: dict[str, JsonValue] = Field(
        default_factory=dict, description="What Ray prepares on the nodes for the workers, as in `ray.init`."
    )
    send_package: bool = Field(
        default=False,
        description="Send this installation's own code to the workers, for nodes that have the dependencies, but "
        "another version of it or none.",
    )
    ray_dashboard: bool = Field(
        default=False,
        description="Start Ray's dashboard with the cluster of this machine; needs `pip install 'ray[default]'`.",
    )
    metrics_port: int | None = Field(
        default=None,
        ge=0,
        le=65535,
        description="Port where the run serves its progress to Prometheus, as /metrics; 0 takes a free one, null none.",
    )
    metrics_host: str = Field(
        default="127.0.0.1", description="Address where it does so; 0.0.0.0 is every interface of the machine."
    )
    grace_s: float = Field(
        default=60.0,
        gt=0,
        description="Seconds after SIGTERM in which requests in flight are finished and stored; then the run ends at "
        "once.",
    )
    shards: int | None = Field(
        default=None,
        description="Parts that problems are split into, a power of two; auto depends on the number of problems.",
    )
    max_error_rate: float = Field(
        default=0.2,
        ge=0,
        le=1,
        description="Share of the requests or rows of a stage that may fail before the run stops, looked at from the "
        "50th on; 1 never stops. A verdict such as `incorrect` is no failure.",
    )

    @field_validator("shards", mode="before")
    @classmethod
    def _power_of_two(cls, shards: Any) -> Any:
        if shards in (None, "auto"):
            return None
        if type(shards) is not int or shards < 1 or shards & (shards - 1):
            raise ValueError(f"must be 'auto' or a power of two, found {shards!r}")
        return shards


class SandboxOptions(Frozen):
    """How the programs of models are run. These options are of the machine: they are not in any key."""

    allow: tuple[Protection, ...] = Field(
        default=(),
        description="Protections of the sandbox that may be missing where this pipeline runs: "
        f"{', '.join(get_args(Protection))}. By default, programs are not run where one is missing.",
    )


class StageSpec(Frozen, Generic[P]):
    """One configured stage: its operation, the stages whose rows it takes, and its parameters.

    `inputs` are stage ids in the order of `from:`; `params` is an instance of the operation's `Params` with defaults
    filled in; `file` and `line` are the place of the stage in the pipeline file.
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
"""A stage with any parameters. It is created here so that pydantic puts the class in this module, to be pickled."""


class PromptTemplate(Protocol):
    """The interface of a prompt for stages; see `text.prompts`."""

    name: str
    style: str
    prefill: str | None
    digest: str
    """The digest of everything that the messages depend on."""
    variables: frozenset[str]
    """The names that need a value when the prompt is rendered."""
    opened_in_prompt: bool
    """Whether a completion starts inside a thinking block."""

    def render(self, **values: Any) -> list[dict[str, str]]:
        """Return the messages.

        Args:
            values: a value for each of `variables`.
        """
        ...


class Change(Frozen):
    """One value that options changed: its path, and its JSON in the file and as it was run; "" where it is absent."""

    path: str
    before: str
    after: str


class Written(Frozen):
    """What a pipeline was read from: its file and the options of the command, for those who want to run it again.

    `file` is relative to the project, `text` its content when it was read, `sets` are the values of `--set`, and
    `changes` is what the profile and `sets` changed in the file.
    """

    file: str = ""
    text: str = ""
    sets: tuple[str, ...] = ()
    changes: tuple[Change, ...] = ()


class Pipeline(Frozen):
    """One pipeline, ready to be planned: profile and `--set` are applied, and all names are resolved.

    `budget` are the caps on what its runs spend, and `billed_to` the pipeline whose spending they count as, itself by
    default. `teach` is what `tracefactory teach` compares. `limit` restricts every source to its first rows. `written`
    is the file and the options that it was read with. `prompts`, `filters` and `plugins` are those of the project, by
    name; plugins are Python sources, by path.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    name: str
    version: str
    description: str = ""
    models: Mapping[str, SerializeAsAny[ModelSpec]]
    stages: tuple[StageSpec[Any], ...]
    run: RunOptions
    budget: Budget = Budget()
    sandbox: SandboxOptions = SandboxOptions()
    teach: Teach | None = None
    billed_to: str = ""
    file: Path
    project: Project
    limit: int | None = None
    profile: str | None = None
    written: Written = Written()
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

    @property
    def ledger_name(self) -> str:
        """The name under which its spending is counted: all runs of one name and version spend one budget."""
        return f"{self.billed_to or self.name}@{self.version}"

    @property
    def caps(self) -> list[Cap]:
        """The caps of the pipeline and of its models."""
        budgets = {"": self.budget, **{name: spec.budget for name, spec in self.models.items() if spec.budget}}
        return [
            Cap(what, limit, model)
            for model, budget in budgets.items()
            for what in COUNTED
            if (limit := getattr(budget, what)) is not None
        ]

    @property
    def variables(self) -> list[str]:
        """The environment variables that its models and stages name, sorted."""
        named = [*self.models.values(), *(stage.params for stage in self.stages)]
        return sorted({name for one in named for name in env_names(one)})

    def stage(self, stage_id: str) -> StageSpec[Any]:
        """Return a stage by its id.

        Raises:
            KeyError: when there is no such stage.
        """
        for stage in self.stages:
            if stage.id == stage_id:
                return stage
        raise KeyError(stage_id)

    def above(self, stage: StageSpec[Any]) -> list[StageSpec[Any]]:
        """Return the stages whose rows reach `stage`, directly or through others, in the order of the pipeline."""
        wanted = set(stage.inputs)
        for one in reversed(self.stages):
            if one.id in wanted:
                wanted.update(one.inputs)
        return [one for one in self.stages if one.id in wanted]

    def max_error_rate(self, stage: StageSpec[Any]) -> float:
        """Return the share of the requests or rows of a stage that may fail before a run stops."""
        own = stage.run.max_error_rate
        return self.run.max_error_rate if own is None else own

    def prompt(self, name: str) -> PromptTemplate:
        """Return a prompt by its name."""
        found: PromptTemplate = self.prompts[name]
        return found


def _unpickled(plugins: ProjectPlugins, kind: type[Pipeline], state: dict[Any, Any]) -> Pipeline:
    made = kind.__new__(kind)
    made.__setstate__(state)
    return made
