"""`source`: problems from a registered source, without exact duplicates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tracefactory.config import Pipeline, StageConfig
from tracefactory.core.errors import Mistake, nearest
from tracefactory.core.fingerprint import digest
from tracefactory.core.op import OPS, Rows, ShardResult, WholeInput, WholeOp, WholeResult
from tracefactory.core.schema import Dropped, Problem, Row
from tracefactory.engine.worker import Worker
from tracefactory.reading.base import SOURCES, Rejected, Source, normalised_question
from tracefactory.serving.base import Where, env_names
from tracefactory.store.stages import dropped_row, problem_id_of, shard_of
from tracefactory.verification.base import VERIFIERS

PROBLEMS_PER_SHARD = 64
FEWEST_SHARDS, MOST_SHARDS = 8, 4096


class SourceOp(WholeOp):
    """Read one source. What cannot be used, and every repeated question, is a dropped row with its reason."""

    verb, version = "source", "1"
    takes, gives = Rows.NONE, Rows.PROBLEMS

    def __init__(self, name: str, source: Source[Any]) -> None:
        # One operation per registered source: what is a class attribute elsewhere is decided here.
        self.name = name  # type: ignore[misc]
        self.Params = source.Params  # type: ignore[misc]
        self.source = source

    def identity(self, stage: StageConfig, pipeline: Pipeline) -> dict[str, Any]:
        here = Where(root=pipeline.project.root)
        read = self.source.identity(self.source.located(stage.params, here.environ), here.root)
        return {"source": self.source.version, "read": read, "limit": pipeline.limit}

    def rows_expected(self, stage: StageConfig, rows: int) -> int | None:
        return None

    def check(self, stage: StageConfig, pipeline: Pipeline) -> list[Mistake]:
        here = Where(root=pipeline.project.root)
        # An environment variable that is not set is told where it is written.
        ready = all(here.environ.get(name) for name in env_names(stage.params))
        located = self.source.located(stage.params, here.environ) if ready else None
        mistakes = [Mistake(text) for text in (self.source.check(located, here.root) if ready else ())]
        verifier = getattr(stage.params, "verifier", None)
        if verifier is not None and verifier not in VERIFIERS:
            mistakes.append(Mistake(f"unknown verifier {verifier!r}", hint=nearest(verifier, VERIFIERS)))
        return mistakes

    def run_whole(
        self, stage: StageConfig, inputs: Mapping[str, WholeInput], shards: int | None, worker: Worker
    ) -> WholeResult:
        kept, dropped = self.problems(stage, worker.pipeline, worker.where)
        return deal(kept, dropped, shards or shards_for(len(kept), worker.pipeline.run.shards))

    def problems(
        self, stage: StageConfig, pipeline: Pipeline, where: Where | None = None
    ) -> tuple[list[Problem], list[Dropped]]:
        """Return the problems to use, in the source's order, and what was not used with the reasons."""
        here = where or Where(root=pipeline.project.root)
        located = self.source.located(stage.params, here.environ)
        first: dict[str, Problem] = {}
        kept: list[Problem] = []
        dropped: list[Dropped] = []
        for number, row in enumerate(self.source.read(located, base_dir=here.root, limit=pipeline.limit)):
            if isinstance(row, Rejected):
                dropped.append(rejected_row(row, number, stage.id))
                continue
            same = first.setdefault(normalised_question(row), row)
            if same is row:
                kept.append(row)
            else:
                dropped.append(duplicate_row(row, same, number, stage.id))
        return kept, dropped


def deal(kept: Sequence[Row], dropped: Sequence[Dropped], count: int) -> WholeResult:
    """Deal the rows of a whole source to `count` shards."""
    parts: list[tuple[list[Row], list[Dropped]]] = [([], []) for _ in range(count)]
    for row in kept:
        parts[shard_of(problem_id_of(row), count)][0].append(row)
    for lost in dropped:
        parts[shard_of(lost.problem_id, count)][1].append(lost)
    results = [ShardResult(rows_in=len(good) + len(bad), kept=good, dropped=bad) for good, bad in parts]
    return WholeResult(shards=count, results=results)


def duplicate_row(row: Row, first: Row, number: int, stage_id: str) -> Dropped:
    """Describe a row that repeats one that came before; `number` is its place in the source."""
    # Identical rows share one id; the row number tells the repeats apart.
    repeat = dropped_row(row, stage_id, "duplicate", f"repeats {first.id}")
    return repeat.model_copy(update={"id": digest({"row": number, "problem": row.id})[:16]})


def rejected_row(row: Rejected, number: int, stage_id: str) -> Dropped:
    """Describe what could not become a row at all; `number` is its place in the source."""
    key = digest({"row": number, "content": row.row})[:16]
    return Dropped(id=key, problem_id=key, stage=stage_id, reason=row.reason, detail=row.detail, row=row.row)


def shards_for(problems: int, asked: int | None) -> int:
    """Return a power of two: as asked, or so that a shard holds about PROBLEMS_PER_SHARD problems."""
    if asked is not None:
        return asked
    wanted = max(FEWEST_SHARDS, -(-problems // PROBLEMS_PER_SHARD))
    return min(MOST_SHARDS, 1 << (wanted - 1).bit_length())


for _name in SOURCES:
    OPS.register(f"source:{_name}")(SourceOp(_name, SOURCES.get(_name)()))
