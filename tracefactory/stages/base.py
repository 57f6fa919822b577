"""What a stage is to the engine: an `Op` with parameters, what it takes and gives, and how it turns rows into rows."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from tracefactory.errors import Mistake
from tracefactory.registry import Registry
from tracefactory.schema import Dropped, Frozen, Problem, Row, Trace

if TYPE_CHECKING:
    from tracefactory.config import Pipeline, StageConfig
    from tracefactory.worker import Worker


@dataclass(frozen=True)
class Ref:
    """Marks a parameter as the name of something declared elsewhere, so that configuration can check it."""

    kind: str  # "model" | "prompt" | "stage"


ModelName = Annotated[str, Ref("model")]
PromptName = Annotated[str, Ref("prompt")]


class Rows(StrEnum):
    """What kind of rows a stage takes or gives."""

    NONE = "none"
    PROBLEMS = "problems"
    TRACES = "traces"


class Host(StrEnum):
    """Where a stage's shards run: beside the model they call (one worker per model), or on any CPU worker."""

    CPU = "cpu"
    MODEL = "model"


@dataclass
class ShardResult:
    """What came of one shard. `rows_in` counts the units asked for; the engine checks that nothing is missing."""

    rows_in: int
    kept: Sequence[Row] = ()
    dropped: Sequence[Dropped] = ()
    numbers: Counter[str] = field(default_factory=Counter)  # requests, tokens, cost ...: added up per stage
    notes: Sequence[str] = ()  # sentences a person must see, e.g. a shortfall

    def check(self, what: str) -> None:
        """Raise when rows in are not kept + dropped + errors."""
        found = len(self.kept) + len(self.dropped)
        if found != self.rows_in:
            raise AssertionError(f"{what}: {self.rows_in} rows in, but {found} kept, dropped and failed: rows were lost")


@dataclass(frozen=True)
class Inputs:
    """The rows of one shard, by input stage id, in the order of `from:`."""

    rows: Mapping[str, Sequence[Row]]

    def problems(self) -> list[Problem]:
        return [row for rows in self.rows.values() for row in rows if isinstance(row, Problem)]

    def traces(self) -> list[Trace]:
        return [row for rows in self.rows.values() for row in rows if isinstance(row, Trace)]


class Op(ABC):
    """One registered value of a verb, such as `sample: chat`. Stateless: everything comes in through the arguments."""

    verb: ClassVar[str]
    name: ClassVar[str]
    version: ClassVar[str]
    Params: ClassVar[type[Frozen]]
    takes: ClassVar[Rows]
    gives: ClassVar[Rows]
    many_inputs: ClassVar[bool] = False  # may `from:` name more than one stage
    host: ClassVar[Host] = Host.CPU

    def identity(self, stage: StageConfig, pipeline: Pipeline) -> dict[str, Any]:
        """Return what decides this stage's rows besides its parameters: digests of prompts, filters, files, models."""
        return {}

    def check(self, stage: StageConfig, pipeline: Pipeline) -> list[Mistake]:
        """Return what is wrong with the parameters that their types cannot say. Offline."""
        return []


class ShardOp(Op):
    """A stage whose shards are independent of each other: they flow on without waiting."""

    @abstractmethod
    async def run(self, stage: StageConfig, inputs: Inputs, worker: Worker) -> ShardResult:
        """Turn the rows of one shard into rows."""


class WholeInput(ABC):
    """All shards of one input stage, read lazily."""

    stage_id: str

    @abstractmethod
    def shards(self) -> Iterator[Sequence[Row]]: ...


@dataclass(frozen=True)
class WholeContext:
    """What a stage that needs all rows at once may use."""

    inputs: Mapping[str, WholeInput]
    shard_count: int
    folder: Path  # the stage's own folder
    limit: int | None


class WholeOp(Op):
    """A stage that must see all of its input at once: source, dedup, mix, publish."""

    @abstractmethod
    async def run_whole(self, stage: StageConfig, context: WholeContext, worker: Worker) -> Iterator[ShardResult]:
        """Return one result per output shard, in order."""


OPS: Registry[Op] = Registry("operation")
"""Every operation by "verb:name", such as "sample:chat"."""
