"""`measure: student`: how likely each trace is to the student that will learn from it. No trace is dropped for it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from tracefactory.config import Pipeline, StageConfig
from tracefactory.errors import Mistake, UserError
from tracefactory.models.base import Where
from tracefactory.models.transformers import TransformersSpec
from tracefactory.op import OPS, Host, Inputs, ModelName, Rows, ShardOp, ShardResult
from tracefactory.schema import Dropped, Frozen, Trace
from tracefactory.scores import ScoreStore
from tracefactory.steps import segment
from tracefactory.store import StageFolder, dropped_row
from tracefactory.students import open_student
from tracefactory.students.local import local_name, local_naturalness
from tracefactory.students.measures import MeasureParams, trace_measures
from tracefactory.students.render import Rendered, RenderError
from tracefactory.students.scores import TokenScores
from tracefactory.students.spec import StudentSpec
from tracefactory.worker import Worker


class MeasureStudentParams(Frozen):
    """`student` is a `use: transformers` model; `measures` are the cut-offs to measure at.

    `window` (steps) adds local naturalness, which takes about 1 + window times the tokens of forward passes; without it
    that is not measured.
    """

    student: ModelName
    measures: MeasureParams = MeasureParams()
    window: int | None = Field(default=None, ge=1)


class LoadedStudent:
    """The student in this worker's memory and its store of scores. One pass runs at a time."""

    def __init__(self, spec: StudentSpec, root: Path) -> None:
        self.student = open_student(spec)
        self.store = ScoreStore(root, spec.key())
        self._turn = asyncio.Lock()

    async def scores(self, rendered: dict[str, Rendered]) -> tuple[dict[str, TokenScores], int]:
        """Return the scores by trace id, and how many of them had to be computed now."""
        stored = self.store.get(rendered)
        found = {
            trace_id: scores
            for trace_id, item in rendered.items()
            for scores in stored.get(trace_id, ())
            if np.array_equal(scores.token_ids, item.ids[item.first : item.stop])
        }
        missing = {trace_id: item for trace_id, item in rendered.items() if trace_id not in found}
        async with self._turn:
            computed = await asyncio.to_thread(self.student.score, list(missing.values()))
        new = dict(zip(missing, computed, strict=True))
        self.store.put(new)
        return found | new, len(new)

    async def naturalness(self, items: Sequence[tuple[Trace, Rendered]], window: int) -> list[float | None]:
        """Return the local naturalness of each trace over the steps of its body."""
        steps = [(item, [(step.start, step.end) for step in segment(_body(trace))]) for trace, item in items]
        async with self._turn:
            return await asyncio.to_thread(local_naturalness, self.student, steps, window)

    async def close(self) -> None:
        """Nothing to end: the weights go with the process."""


class MeasureStudent(ShardOp):
    """Score every trace under the student and file the measures as `<student>/<name>`.

    A trace that cannot be rendered without loss, or is longer than the student's context, is an error row.
    """

    verb, name, version = "measure", "student", "1"
    Params = MeasureStudentParams
    takes, gives = Rows.TRACES, Rows.TRACES
    many_inputs = True
    host = Host.MODEL

    def identity(self, stage: StageConfig, pipeline: Pipeline) -> dict[str, Any]:
        return {"student": _spec(stage, pipeline).identity(Where(root=pipeline.project.root))}

    def check(self, stage: StageConfig, pipeline: Pipeline) -> list[Mistake]:
        model = pipeline.models[_params(stage).student]
        if isinstance(model, TransformersSpec):
            return []
        return [Mistake(f"student: {_params(stage).student!r} is `use: {model.use}`; scores need `use: transformers`")]

    def refusal(self, stage: StageConfig, pipeline: Pipeline, keys: Mapping[str, str]) -> Mistake | None:
        """Refuse, before anything is paid for, a student whose chat template drops what it should be trained on."""
        folder = StageFolder(pipeline.project.state_dir, stage.id, keys[stage.id], self.gives)
        if folder.record() is not None:
            return None
        try:
            check_template(_spec(stage, pipeline).student(Where(root=pipeline.project.root)))
        except UserError as error:
            return Mistake(f"stage {stage.id!r}: {error}", stage.file, stage.line)
        return None

    async def run(self, stage: StageConfig, inputs: Inputs, worker: Worker) -> ShardResult:
        params, traces = _params(stage), inputs.traces()
        spec = _spec(stage, worker.pipeline).student(worker.where)
        loaded = worker.keep(f"student:{params.student}", lambda: LoadedStudent(spec, worker.setup.root))
        rendered, dropped = _rendered(traces, loaded, stage.id)
        scores, computed = await loaded.scores(rendered)
        measures = {
            trace_id: {
                f"{params.student}/{name}": value for name, value in trace_measures(one, params.measures).items()
            }
            for trace_id, one in scores.items()
        }
        measured = [trace for trace in traces if trace.id in rendered]
        if params.window is not None:
            natural = await loaded.naturalness([(one, rendered[one.id]) for one in measured], params.window)
            for trace, value in zip(measured, natural, strict=True):
                if value is not None:
                    measures[trace.id] |= _named(params, {local_name(params.window): value})
        kept = [one.model_copy(update={"measures": {**one.measures, **measures[one.id]}}) for one in measured]
        numbers = {"scored": float(len(scores)), "scored_now": float(computed)}
        return ShardResult(rows_in=len(traces), kept=kept, dropped=dropped, numbers=numbers)


def check_template(spec: StudentSpec) -> None:
    """Check, with the tokenizer alone, that the student's chat template keeps the reasoning.

    Raises:
        UserError: when it drops it, with what to do, or when the `student` extra is missing.
    """
    try:
        from tracefactory.students.load import load_tokenizer
        from tracefactory.students.render import Renderer
    except ModuleNotFoundError as error:
        raise UserError(f"scoring under a student needs {error.name}: pip install 'tracefactory[student]'") from error
    Renderer(load_tokenizer(spec), spec.reasoning).check()


def _rendered(
    traces: Sequence[Trace], loaded: LoadedStudent, stage_id: str
) -> tuple[dict[str, Rendered], list[Dropped]]:
    rendered: dict[str, Rendered] = {}
    dropped: list[Dropped] = []
    most = loaded.student.max_tokens
    for trace in traces:
        try:
            item = loaded.student.render(trace.problem.question, trace.reasoning, trace.answer_text)
        except RenderError as error:
            dropped.append(dropped_row(trace, stage_id, error.reason, str(error), error=True))
            continue
        if most is not None and len(item) > most:
            detail = f"{len(item)} tokens, the student's context is {most}"
            dropped.append(dropped_row(trace, stage_id, "longer_than_context", detail, error=True))
        else:
            rendered[trace.id] = item
    return rendered, dropped


def _named(params: MeasureStudentParams, measures: Mapping[str, float]) -> dict[str, float]:
    return {f"{params.student}/{name}": value for name, value in measures.items()}


def _body(trace: Trace) -> str:
    return trace.reasoning or trace.answer_text


def _spec(stage: StageConfig, pipeline: Pipeline) -> TransformersSpec:
    spec = pipeline.models[_params(stage).student]
    assert isinstance(spec, TransformersSpec)
    return spec


def _params(stage: StageConfig) -> MeasureStudentParams:
    assert isinstance(stage.params, MeasureStudentParams)
    return stage.params


OPS.register("measure:student")(MeasureStudent())
