"""What a stage is to the engine: an `Op` with parameters, what it takes and gives, and how it turns rows into rows."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from tracefactory.core.errors import Mistake
from tracefactory.core.registry import Registry
from tracefactory.core.schema import Dropped, Frozen, Problem, Row, Trace

if TYPE_CHECKING:
    import polars as pl

    from tracefactory.config import Pipeline, StageConfig
    from tracefactory.engine.worker import Worker


@dataclass(frozen=True)
class Ref:
    """Marks a parameter as the name of something declared elsewhere, so that configuration can check it."""

    kind: str  # "model" | "prompt" | "stage"


ModelName = Annotated[str, Ref("model")]
PromptName = Annotated[str, Ref("prompt")]


STANDS = "stands_"
"""Begins the names of `ShardResult.numbers` that count rows which were to be changed and were not, by reason."""


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
    retryable: int = 0  # of the dropped rows, those that another run should try again
    numbers: dict[str, float] = field(default_factory=dict)  # requests, tokens, cost ...: added up per stage
    notes: Sequence[str] = ()  # sentences a person must see, e.g. a shortfall

    def check(self, what: str) -> None:
        """Raise when rows in are not kept + dropped + errors."""
        found = len(self.kept) + len(self.dropped)
        if found != self.rows_in:
            raise AssertionError(
                f"{what}: {self.rows_in} rows in, but {found} kept, dropped and failed: rows were lost"
            )


@dataclass(frozen=True)
class Inputs:
    """The rows of one shard, by input stage id, in the order of `from:`."""

    rows: Mapping[str, Sequence[Row]]

    def problems(self) -> list[Problem]:
        return [row for rows in self.rows.values() for row in rows if isinstance(row, Problem)]

    def traces(self) -> list[Trace]:
        return [row for rows in self.rows.values() for row in rows if isinstance(row, Trace)]


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

    def asks(self, stage: StageConfig) -> str | None:
        """Return the model that the stage asks first: its shards run on that model's worker; None for none."""
        return stage.model_names[0] if self.host is Host.MODEL else None

    def at_most(self, stage: StageConfig, pipeline: Pipeline, rows: Sequence[Row]) -> Mapping[str, AtMost]:
        """Return, by model, the most that the stage asks about `rows`; empty where it asks none or nobody can say."""
        return {}

    def measures(self, stage: StageConfig, pipeline: Pipeline) -> frozenset[str]:
        """Return the names of the measures that the stage files with its traces; a `*` in one stands for any name."""
        return frozenset()

    def refusal(self, stage: StageConfig, pipeline: Pipeline, keys: Mapping[str, str]) -> Mistake | None:
        """Return why a run must not even begin, seen from this stage; `keys` are the keys of all stages."""
        return None

    def is_intact(self, stage: StageConfig, pipeline: Pipeline) -> bool:
        """Tell whether what a finished stage left outside its folder is still there."""
        return True

    def rows_expected(self, stage: StageConfig, rows: int) -> int | None:
        """Return how many rows the whole stage must account for when its inputs gave `rows`; None if nobody can say."""
        return rows

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
    def shards(self, count: int) -> Iterator[Sequence[Row]]:
        """Yield the rows of each of `count` shards, in order; one shard is in memory at a time."""

    @abstractmethod
    def columns(self, *selected: pl.Expr) -> pl.DataFrame:
        """Return just these columns of all rows."""


@dataclass(frozen=True)
class WholeResult:
    """What a stage that needs all rows at once gives: the number of shards and one result for each, in order."""

    shards: int
    results: Iterable[ShardResult]


class WholeOp(Op):
    """A stage that must see all of its input at once: source, mix, publish."""

    @abstractmethod
    def run_whole(
        self, stage: StageConfig, inputs: Mapping[str, WholeInput], shards: int | None, worker: Worker
    ) -> WholeResult:
        """Turn all rows into rows; a source, which has no `shards` given, decides how many there are."""


OPS: Registry[Op] = Registry("operation", "tracefactory.stages")
"""Every operation by "verb:name", such as "sample:chat"."""
