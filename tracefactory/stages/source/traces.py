"""`source: traces`: traces that were sampled before, each with its problem, without exact duplicates."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tracefactory.core.decisions import Made, drop
from tracefactory.core.environment import Environment
from tracefactory.core.fingerprint import digest
from tracefactory.core.pipeline import Pipeline, StageSpec
from tracefactory.core.rows import ID_DIGITS, Kind, Problem, Trace
from tracefactory.core.stage import STAGES
from tracefactory.reading.base import Rejected
from tracefactory.sources.traces import TraceFiles
from tracefactory.stages.source.family import SourceStage


class SourceTraces(SourceStage):
    """Read traces from files. What cannot be used, and every repeated trace, is a dropped row with its reason."""

    makes = Kind.TRACES
    source: TraceFiles

    def read(self, stage: StageSpec[Any], pipeline: Pipeline, environment: Environment) -> Iterator[Made]:
        located: Any = self.source.located(stage.params, environment.environ)
        seen: set[int] = set()
        for number, row in enumerate(self.source.traces(located, base_dir=environment.root, limit=pipeline.limit)):
            if isinstance(row, Rejected):
                key = digest({"row": number, "content": row.row})[:ID_DIGITS]
                nothing = Trace(id=key, problem=Problem(id=key, question="", answer=None), op="import")
                yield Made(nothing, drop(row.reason, row.detail), rejected=row.row)
            elif int(row.id, 16) in seen:
                own = digest({"row": number, "problem": row.id})[:ID_DIGITS]
                yield Made(row.model_copy(update={"id": own}), drop("duplicate", f"repeats {row.id}"))
            else:
                seen.add(int(row.id, 16))
                yield Made(row.model_copy(update={"stage": stage.id}))


STAGES.register("source:traces")(SourceTraces("traces", TraceFiles()))
