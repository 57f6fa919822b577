"""`source: traces`: traces that somebody sampled before, each with its problem, without exact duplicates."""

from __future__ import annotations

from collections.abc import Mapping

from tracefactory.config import StageConfig
from tracefactory.core.op import OPS, Rows, WholeInput, WholeResult
from tracefactory.core.schema import Dropped, Trace
from tracefactory.engine.worker import Worker
from tracefactory.reading.base import Rejected
from tracefactory.sources.traces import TraceFiles, TraceFilesParams
from tracefactory.stages.source.problems import SourceOp, deal, duplicate_row, rejected_row, shards_for


class SourceTraces(SourceOp):
    """Read traces from files. What cannot be used, and every repeated trace, is a dropped row with its reason."""

    gives = Rows.TRACES

    def run_whole(
        self, stage: StageConfig, inputs: Mapping[str, WholeInput], shards: int | None, worker: Worker
    ) -> WholeResult:
        assert isinstance(stage.params, TraceFilesParams)
        assert isinstance(self.source, TraceFiles)
        root, limit = worker.pipeline.project.root, worker.pipeline.limit
        located = self.source.located(stage.params, worker.where.environ)
        assert isinstance(located, TraceFilesParams)
        first: dict[str, Trace] = {}
        dropped: list[Dropped] = []
        for number, row in enumerate(self.source.traces(located, base_dir=root, limit=limit)):
            if isinstance(row, Rejected):
                dropped.append(rejected_row(row, number, stage.id))
            elif first.setdefault(row.id, row) is not row:
                dropped.append(duplicate_row(row, first[row.id], number, stage.id))
        kept = [row.model_copy(update={"stage": stage.id}) for row in first.values()]
        problems = len({row.problem_id for row in kept})
        return deal(kept, dropped, shards or shards_for(problems, worker.pipeline.run.shards))


OPS.register("source:traces")(SourceTraces("traces", TraceFiles()))
