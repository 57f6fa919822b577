"""The contract between a stage and the engine: what a stage declares, what it is given, what it returns.

A stage is stateless: everything comes in through the arguments. How it works is its `Work`: on rows, a batch of whole
problems at a time (`run`); on columns alone, without the text (`decide`); as a source of rows (`read`); or as the
release of a dataset (`publish.stage`). A stage that *makes* rows writes text; one that *judges* writes, for each row it
was given, a decision and the columns it declared.
"""

from __future__ import annotations

from abc import ABC
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Annotated, Any, ClassVar, Generic, Protocol

import polars as pl

from tracefactory.core.columns import Column
from tracefactory.core.decisions import Judgement, Made
from tracefactory.core.environment import Environment
from tracefactory.core.errors import Mistake
from tracefactory.core.pipeline import P, Pipeline, StageSpec
from tracefactory.core.refs import Ref
from tracefactory.core.registry import Registry, registry
from tracefactory.core.rows import Kind, Problem, Row, Trace
from tracefactory.core.services import Answer as Answer
from tracefactory.core.services import Closing as Closing
from tracefactory.core.services import Completer as Completer
from tracefactory.core.services import Kept as Kept
from tracefactory.core.services import Record as Record
from tracefactory.core.services import Services as Services
from tracefactory.core.services import verify as verify
from tracefactory.core.spans import Span
from tracefactory.core.upgrade import Upgrade

ModelName = Annotated[str, Ref("model")]
PromptName = Annotated[str, Ref("prompt")]

UNCHANGED = "unchanged_"
"""Begins the names of `Result.numbers` that count rows which were to be changed and were not, by reason."""


class Work(StrEnum):
    """How a stage works, which decides what the engine hands it."""

    ROWS = "rows"  # batches of rows, complete problems at a time
    COLUMNS = "columns"  # the columns it names, of one shard or of all shards, whichever is at hand
    TABLE = "table"  # the columns it names, of all shards at once
    SOURCE = "source"  # nothing: it reads rows from elsewhere
    RELEASE = "release"  # everything: it writes the dataset


class Host(StrEnum):
    """Where a stage's shards run: beside the model they call (one worker per model), or on any CPU worker."""

    CPU = "cpu"
    MODEL = "model"


@dataclass(frozen=True)
class Batch:
    """Some rows of a shard. All rows of a problem are in one batch, sorted by id."""

    problems: Sequence[Problem] = ()
    traces: Sequence[Trace] = ()

    @property
    def rows(self) -> Sequence[Row]:
        return self.problems or self.traces

    def groups(self) -> Iterator[Sequence[Trace]]:
        """Yield the traces of each problem."""
        start = 0
        for index in range(1, len(self.traces) + 1):
            if index == len(self.traces) or self.traces[index].problem_id != self.traces[start].problem_id:
                yield self.traces[start:index]
                start = index


@dataclass
class Result:
    """The result of one batch: the rows made of it, and a judgement for each row that was given.

    `numbers` (requests, tokens, cost ...) are added up per stage; `notes` are sentences a person must see.
    """

    made: Sequence[Made] = ()
    judged: Sequence[Judgement] = ()
    numbers: Mapping[str, float] = field(default_factory=dict)
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Decided:
    """What a stage decided from columns alone.

    `frame` has one row for each row it was given: problem_id, id, kept, reason, detail, and the columns it declared.
    """

    frame: pl.DataFrame
    numbers: Mapping[str, float] = field(default_factory=dict)
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Facts:
    """What a stage tells the card of the dataset: its source, the requested shares, and sentences.

    `shares` are by the value of the column `shares_by`.
    """

    source: str = ""
    revision: str = ""
    shares: Mapping[str, float] = field(default_factory=dict)
    unit: str = ""
    shares_by: str = "style"
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class AtMost:
    """A bound on what asking one model about some rows takes: requests, and tokens in and out."""

    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def __add__(self, other: AtMost) -> AtMost:
        return AtMost(
            self.requests + other.requests,
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
        )


@dataclass(frozen=True)
class Wanted:
    """One request that a stage will make: the key it is stored under, and a bound on its tokens."""

    key: str
    key_v1: Callable[[], str]
    prompt_bytes: int


class RowReader(Protocol):
    """The rows that a stage is given; see `store.rows.StageRows`."""

    @property
    def columns(self) -> Mapping[str, Column]:
        """The declared columns that the rows have, by name."""
        ...

    def frame(self, span: Span, wanted: Iterable[str] | None = None) -> pl.DataFrame:
        """Return columns of the rows of a span, sorted by (problem_id, id)."""
        ...

    def problems(self, span: Span, wanted: Iterable[str] | None = None) -> pl.DataFrame:
        """Return columns of the problems of the rows of a span; those of dropped rows may be among them."""
        ...

    def batches(self, span: Span, problems: int) -> Iterator[Batch]:
        """Yield the rows of a span, up to `problems` whole problems at a time."""
        ...


class Stage(ABC, Generic[P]):
    """One registered operation, such as `sample: chat`.

    `version` goes up when the same input would give other rows: it is in the key. `makes` is the kind of rows whose
    text the stage writes, NONE for one that only judges; `judges` says whether it says something of every row it takes.
    """

    verb: ClassVar[str]
    name: ClassVar[str]
    version: ClassVar[str]
    Params: ClassVar[type[Any]]
    takes: ClassVar[frozenset[Kind]] = frozenset({Kind.TRACES})
    makes: ClassVar[Kind] = Kind.NONE
    judges: ClassVar[bool] = True
    many_inputs: ClassVar[bool] = True  # may `from:` name more than one stage
    host: ClassVar[Host] = Host.CPU
    work_on: ClassVar[Work] = Work.ROWS
    offline: ClassVar[bool] = True  # a source that a plan may read, because it needs no network

    def work(self, stage: StageSpec[P], pipeline: Pipeline) -> Work:
        """Return how the stage works with these parameters."""
        return self.work_on

    def gives(self, taken: Kind) -> Kind:
        """Return the kind of rows that the stage gives for the kind it takes."""
        return taken if self.makes is Kind.NONE else self.makes

    def key_params(self, stage: StageSpec[P], pipeline: Pipeline) -> Mapping[str, Any]:
        """Return the parameters as they are in the key: those that differ from their defaults."""
        dumped: dict[str, Any] = stage.params.model_dump(mode="json", by_alias=True, exclude_defaults=True)
        return dumped

    def uses(self, stage: StageSpec[P], pipeline: Pipeline) -> Mapping[str, Any]:
        """Return what decides the rows in addition to the parameters: digests of prompts, filters, files, models used.

        Versions of code (a verifier's, a pruner's) are under "versions": they change with this package and not with
        what the user wrote.
        """
        return {}

    def columns(self, stage: StageSpec[P], pipeline: Pipeline) -> Sequence[Column]:
        """Return the columns that the stage adds to its rows."""
        return ()

    def check(self, stage: StageSpec[P], pipeline: Pipeline) -> list[Mistake]:
        """Return what is wrong with the parameters that their types cannot say. Offline."""
        return []

    def refusal(self, stage: StageSpec[P], pipeline: Pipeline) -> Mistake | None:
        """Return why a run that has to run this stage must not even begin."""
        return None

    def template_mistakes(self, stage: StageSpec[P], pipeline: Pipeline) -> list[Mistake]:
        """Return what chat templates would do to the texts of the stage, for models whose template is at hand.

        Asked by `tracefactory check FILE` and before a run pays; may load the tokenizer of a student.
        """
        return []

    def missing_allowed(self, stage: StageSpec[P]) -> float:
        """Return the share of the rows of a stage above that may still be owed when a release is written."""
        return 0.0

    def is_settled(self, stage: StageSpec[P], pipeline: Pipeline) -> bool:
        """Return whether a release was published without rows that are still owed, so that they are not retried."""
        return False

    def is_intact(self, stage: StageSpec[P], pipeline: Pipeline) -> bool:
        """Tell whether what a finished stage left outside of its folder is still there."""
        return True

    def asks(self, stage: StageSpec[P], pipeline: Pipeline) -> str | None:
        """Return the model that the stage asks first: its shards run on that model's worker; None for none."""
        return None

    def loads(self, stage: StageSpec[P], pipeline: Pipeline) -> frozenset[str]:
        """Return the models that are loaded for the stage: that of its workers, and those with servers of their own."""
        first = self.asks(stage, pipeline)
        return frozenset(name for name in stage.model_names if name == first or not pipeline.models[name].in_process)

    def teachers(self, stage: StageSpec[P], pipeline: Pipeline) -> frozenset[str]:
        """Return the names under which the traces that the stage makes have a teacher; "*" for names in the rows."""
        imported = self.work_on is Work.SOURCE and self.makes is Kind.TRACES
        return frozenset({"*"}) if imported else frozenset()

    def scored_by(self, stage: StageSpec[P]) -> frozenset[str]:
        """Return the students whose token scores the stage stores for every row it passes on."""
        return frozenset()

    def reports_logprobs(self, stage: StageSpec[P]) -> bool | None:
        """Tell whether the traces that the stage samples have log-probabilities; None where it samples none."""
        return None

    def wanted(self, stage: StageSpec[P], pipeline: Pipeline, batch: Batch) -> Iterator[Wanted] | None:
        """Yield every request the stage will make about some rows; None when it depends on the answers."""
        return None

    def at_most(self, stage: StageSpec[P], pipeline: Pipeline, batch: Batch) -> Mapping[str, AtMost]:
        """Return, by model, the most the stage asks about some rows; empty where it asks nothing or it is unknown."""
        return {}

    def facts(self, stage: StageSpec[P], numbers: Mapping[str, float]) -> Facts:
        """Return what the card says of the stage; `numbers` are its totals."""
        return Facts()

    def rows_made(self, stage: StageSpec[P], rows: int) -> int | None:
        """Return how many rows the stage makes of `rows` rows; None if it is unknown."""
        return None

    def upgrade(
        self, stage: StageSpec[P], pipeline: Pipeline, before: Mapping[str, Any], rows: RowReader | None
    ) -> Upgrade | None:
        """Tell what other versions of code change since identity `before`, in words alone without its stored `rows`."""
        return None

    async def run(self, stage: StageSpec[P], batch: Batch, services: Services) -> Result:
        """Work on one batch of rows (`Work.ROWS`)."""
        raise TypeError(f"{stage.op} does not work on rows")

    def reads(self, stage: StageSpec[P], pipeline: Pipeline) -> frozenset[str]:
        """Return the columns that `decide` looks at, in addition to problem_id and id."""
        return frozenset()

    def decide(self, stage: StageSpec[P], frame: pl.DataFrame, pipeline: Pipeline) -> Decided:
        """Decide from columns alone (`Work.COLUMNS`, `Work.TABLE`)."""
        raise TypeError(f"{stage.op} does not decide from columns")

    def read(self, stage: StageSpec[P], pipeline: Pipeline, environment: Environment) -> Iterator[Made]:
        """Yield the rows of a source (`Work.SOURCE`) in its own order."""
        raise TypeError(f"{stage.op} is no source")

    def ranges(self, stage: StageSpec[P], rows: RowReader) -> Sequence[Span]:
        """Return the ranges in which a dataset is written (`Work.RELEASE`), independently of each other."""
        raise TypeError(f"{stage.op} releases nothing")

    def write_range(self, stage: StageSpec[P], rows: RowReader, number: int, span: Span, services: Services) -> Any:
        """Write one range and return a report, which is pickled."""
        raise TypeError(f"{stage.op} releases nothing")

    def release(self, stage: StageSpec[P], rows: RowReader, reports: Sequence[Any], services: Services) -> Decided:
        """Put what was written in its place; say of every row whether it is in the dataset."""
        raise TypeError(f"{stage.op} releases nothing")


STAGES: Registry[Stage[Any]] = registry("operation")
"""Every operation by "verb:name", such as "sample:chat"."""


def stage_of(spec: StageSpec[Any]) -> Stage[Any]:
    """Return the operation of a configured stage."""
    return STAGES.get(spec.op)


def kinds_of(pipeline: Pipeline) -> dict[str, Kind]:
    """Return the kind of rows that every stage gives."""
    found: dict[str, Kind] = {}
    for stage in pipeline.stages:
        taken = found[stage.inputs[0]] if stage.inputs else Kind.NONE
        found[stage.id] = stage_of(stage).gives(taken)
    return found
