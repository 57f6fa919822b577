"""`measure: student`: how likely each trace is to the student that will learn from it. No trace is dropped for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import Field

from tracefactory.config import Pipeline, StageConfig
from tracefactory.core.errors import Mistake, UserError
from tracefactory.core.op import OPS, Host, Inputs, ModelName, Rows, ShardOp, ShardResult
from tracefactory.core.schema import Dropped, Frozen, Trace
from tracefactory.engine.worker import Worker
from tracefactory.models.transformers import TransformersSpec
from tracefactory.models.vllm import VLLMSpec
from tracefactory.serving.base import RequestFailed, Where
from tracefactory.stages.known import stages_above
from tracefactory.stages.sample.chat import ChatParams
from tracefactory.store.scores import ScoreStore
from tracefactory.store.stages import StageFolder, dropped_row
from tracefactory.students import check_template, open_served, open_student
from tracefactory.students.against_teacher import (
    DivergenceParams,
    divergence_measures,
    divergence_names,
    stored_logprobs,
)
from tracefactory.students.in_process import InProcess
from tracefactory.students.local import local_name, local_naturalness
from tracefactory.students.measures import MeasureParams, measure_names, trace_measures
from tracefactory.students.render import Rendered, RenderError
from tracefactory.students.scores import TokenScores
from tracefactory.students.steps import step_measures
from tracefactory.text.steps import Granularity, segment

if TYPE_CHECKING:
    from tracefactory.students.served import ServedStudent


class MeasureStudentParams(Frozen):
    """`student` is a `use: transformers` or `use: vllm` model; `measures` are the cut-offs to measure at.

    `window` (steps) adds local naturalness, which takes about 1 + window times the tokens of forward passes; without it
    that is not measured. `steps` adds the mean surprisal of every step, cut that finely, as `step_surprisal_1`, `..._2`
    and so on, and their number as `steps`. `divergence` compares teacher and student sentence by sentence where the
    teacher was sampled with `logprobs: true`; neither takes another pass.
    """

    student: ModelName
    measures: MeasureParams = MeasureParams()
    window: int | None = Field(default=None, ge=1)
    steps: Granularity | None = None
    divergence: DivergenceParams | None = None


class KnownStudent:
    """A student, in this worker's memory or served, and the store of what it said."""

    def __init__(self, student: InProcess | ServedStudent, store: ScoreStore) -> None:
        self.student, self.store = student, store

    async def scores(self, rendered: dict[str, Rendered]) -> tuple[dict[str, TokenScores | RequestFailed], int]:
        """Return scores, or why there are none, by trace id, and how many had to be computed now."""
        stored = self.store.get(rendered)
        found: dict[str, TokenScores | RequestFailed] = {
            trace_id: scores
            for trace_id, item in rendered.items()
            for scores in stored.get(trace_id, ())
            if np.array_equal(scores.token_ids, item.ids[item.first : item.stop])
        }
        missing = {trace_id: item for trace_id, item in rendered.items() if trace_id not in found}
        came = dict(zip(missing, await self.student.score(list(missing.values())), strict=True))
        new = {trace_id: one for trace_id, one in came.items() if isinstance(one, TokenScores)}
        self.store.put(new)
        return found | came, len(new)

    async def naturalness(
        self, items: Sequence[tuple[Trace, Rendered]], window: int
    ) -> list[float | RequestFailed | None]:
        """Return the local naturalness of each trace over the steps of its body."""
        steps = [(item, [(step.start, step.end) for step in segment(_body(trace))]) for trace, item in items]
        return await local_naturalness(self.student, steps, window)

    async def close(self) -> None:
        """Nothing to end: weights go with the process, and servers are their client's."""


class MeasureStudent(ShardOp):
    """Score every trace under the student and file the measures as `<student>/<name>`.

    A trace that cannot be rendered without loss, is longer than the student's context, or that its servers give no
    scores for, is an error row. A served student tells no entropies, so measures of them are left out.
    """

    verb, name, version = "measure", "student", "1"
    Params = MeasureStudentParams
    takes, gives = Rows.TRACES, Rows.TRACES
    many_inputs = True
    host = Host.MODEL

    def identity(self, stage: StageConfig, pipeline: Pipeline) -> dict[str, Any]:
        model = _model(stage, pipeline)
        where = Where(root=pipeline.project.root)
        student = {**model.identity(where), "reasoning": model.reasoning}
        return {"student": student, "scores": model.scores_key(where)}

    def measures(self, stage: StageConfig, pipeline: Pipeline) -> frozenset[str]:
        params = _params(stage)
        in_process = isinstance(pipeline.models[params.student], TransformersSpec)
        names = list(measure_names(params.measures, entropies=in_process))
        names += [] if params.window is None else [local_name(params.window)]
        names += [] if params.steps is None else ["steps", "step_surprisal_*"]
        names += [] if params.divergence is None else divergence_names(params.divergence)
        return frozenset(f"{params.student}/{name}" for name in names)

    def check(self, stage: StageConfig, pipeline: Pipeline) -> list[Mistake]:
        model = pipeline.models[_params(stage).student]
        if isinstance(model, TransformersSpec | VLLMSpec):
            return _check_divergence(stage, pipeline)
        said = f"student: {_params(stage).student!r} is `use: {model.use}`; scores need `use: transformers` or `vllm`"
        return [Mistake(said)]

    def refusal(self, stage: StageConfig, pipeline: Pipeline, keys: Mapping[str, str]) -> Mistake | None:
        """Refuse, before anything is paid for, a student whose chat template drops what it should be trained on."""
        folder = StageFolder(pipeline.project.state_dir, stage.id, keys[stage.id], self.gives)
        if folder.record() is not None:
            return None
        try:
            check_template(_model(stage, pipeline).student(Where(root=pipeline.project.root)))
        except UserError as error:
            return Mistake(f"stage {stage.id!r}: {error}", stage.file, stage.line)
        return None

    async def run(self, stage: StageConfig, inputs: Inputs, worker: Worker) -> ShardResult:
        params, traces = _params(stage), inputs.traces()
        student = worker.keep(f"student:{params.student}", lambda: _open(stage, worker))
        rendered, dropped = _rendered(traces, student, stage.id)
        scores, computed = await student.scores(rendered)
        scored = [one for one in traces if isinstance(scores.get(one.id), TokenScores)]
        natural: dict[str, float | RequestFailed | None] = {}
        if params.window is not None:
            values = await student.naturalness([(one, rendered[one.id]) for one in scored], params.window)
            natural = dict(zip((one.id for one in scored), values, strict=True))
        diverging, why_not = _divergence(params, scored, scores, worker)
        kept, retryable = [], 0
        for trace in (one for one in traces if one.id in rendered):
            known, local = scores[trace.id], natural.get(trace.id)
            if isinstance(known, RequestFailed) or isinstance(local, RequestFailed):
                failed = known if isinstance(known, RequestFailed) else local
                assert isinstance(failed, RequestFailed)
                dropped.append(dropped_row(trace, stage.id, failed.kind, str(failed), error=True))
                retryable += failed.retryable
                continue
            found = trace_measures(known, params.measures)
            if params.window is not None and local is not None:
                found[local_name(params.window)] = local
            if params.steps is not None:
                found |= step_measures(known, _body(trace), params.steps)
            if trace.id in diverging:
                found |= diverging[trace.id]
            named = {f"{params.student}/{name}": value for name, value in found.items()}
            kept.append(trace.model_copy(update={"measures": {**trace.measures, **named}}))
        numbers = {"scored": float(len(scored)), "scored_now": float(computed)}
        numbers |= {f"no_divergence_{name}": number for name, number in why_not.items()}
        notes = [f"{stage.id}: traces that were not compared with their teacher: {name}" for name in why_not]
        return ShardResult(len(traces), kept, dropped, retryable, numbers, notes)


def _divergence(
    params: MeasureStudentParams,
    scored: Sequence[Trace],
    scores: Mapping[str, TokenScores | RequestFailed],
    worker: Worker,
) -> tuple[dict[str, dict[str, float]], dict[str, float]]:
    """Return the measures of teacher against student by trace id, and how many traces have none, by reason."""
    if params.divergence is None:
        return {}, {}
    records = worker.requests.get({trace.request_key for trace in scored if trace.request_key})
    found: dict[str, dict[str, float]] = {}
    why_not: dict[str, float] = {}
    for trace in scored:
        known = scores[trace.id]
        assert isinstance(known, TokenScores)
        logprobs = stored_logprobs(records.get(trace.request_key))
        came = divergence_measures(trace, known, logprobs, params.divergence)
        if isinstance(came, str):
            why_not[came] = why_not.get(came, 0.0) + 1.0
        else:
            found[trace.id] = came
    return found, why_not


def _check_divergence(stage: StageConfig, pipeline: Pipeline) -> list[Mistake]:
    """Refuse to compare with teachers of whom none reports its log-probabilities."""
    above = [one.params for one in stages_above(stage, pipeline) if isinstance(one.params, ChatParams)]
    if _params(stage).divergence is None or not above or any(params.logprobs for params in above):
        return []
    return [Mistake("divergence: no stage above samples with `logprobs: true`", hint="set it there: it costs nothing")]


def _open(stage: StageConfig, worker: Worker) -> KnownStudent:
    """Return the student of a stage: loaded into this worker, or reached through its servers."""
    model = _model(stage, worker.pipeline)
    spec = model.student(worker.where)
    store = ScoreStore(worker.setup.root, model.scores_key(worker.where))
    if isinstance(model, TransformersSpec):
        return KnownStudent(InProcess(open_student(spec)), store)
    client = worker.client(_params(stage).student)
    return KnownStudent(open_served(spec, client, model.longest_prompt), store)


def _rendered(
    traces: Sequence[Trace], student: KnownStudent, stage_id: str
) -> tuple[dict[str, Rendered], list[Dropped]]:
    rendered: dict[str, Rendered] = {}
    dropped: list[Dropped] = []
    most = student.student.max_tokens
    for trace in traces:
        try:
            item = student.student.render(trace.problem.question, trace.reasoning, trace.answer_text)
        except RenderError as error:
            dropped.append(dropped_row(trace, stage_id, error.reason, str(error), error=True))
            continue
        if most is not None and len(item) > most:
            detail = f"{len(item)} tokens, the student's context is {most}"
            dropped.append(dropped_row(trace, stage_id, "longer_than_context", detail, error=True))
        else:
            rendered[trace.id] = item
    return rendered, dropped


def _body(trace: Trace) -> str:
    return trace.reasoning or trace.answer_text


def _model(stage: StageConfig, pipeline: Pipeline) -> TransformersSpec | VLLMSpec:
    model = pipeline.models[_params(stage).student]
    assert isinstance(model, TransformersSpec | VLLMSpec)
    return model


def _params(stage: StageConfig) -> MeasureStudentParams:
    assert isinstance(stage.params, MeasureStudentParams)
    return stage.params


OPS.register("measure:student")(MeasureStudent())
