"""`measure: student`: how likely each trace is to the student that will learn from it. No trace is dropped for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from pydantic import Field

from tracefactory.core.columns import Column
from tracefactory.core.decisions import KEEP, Decision, Judgement, fail
from tracefactory.core.environment import Environment
from tracefactory.core.errors import Mistake, UserError
from tracefactory.core.model import RequestFailed
from tracefactory.core.pipeline import Pipeline, StageSpec
from tracefactory.core.rows import Frozen, Trace
from tracefactory.core.stage import STAGES, Batch, Host, ModelName, Result, Services, Stage, stage_of
from tracefactory.core.token_scores import TokenScores
from tracefactory.store.scores import ScoreStore
from tracefactory.students import check_template, open_served, open_student
from tracefactory.students.against_teacher import (
    DivergenceParams,
    divergence_columns,
    divergence_measures,
    stored_logprobs,
)
from tracefactory.students.contrast import (
    Contrast,
    ContrastParams,
    contrast_columns,
    contrast_key,
    contrast_measures,
)
from tracefactory.students.in_process import InProcess
from tracefactory.students.local import local_naturalness
from tracefactory.students.measures import MeasureParams, measure_columns, trace_measures
from tracefactory.students.names import local_name
from tracefactory.students.over import Over, of_text
from tracefactory.students.render import Rendered, RenderError
from tracefactory.students.steps import step_columns, step_measures
from tracefactory.text.steps import Granularity, segment

if TYPE_CHECKING:
    from tracefactory.students.served import ServedStudent
    from tracefactory.students.student import Student


class MeasureStudentParams(Frozen):
    """The student, and what to measure under it."""

    student: ModelName = Field(description="The student: a model with `use: transformers` or `use: vllm`.")
    over: Over = Field(
        default=Over.TEXT,
        description="The tokens that measures are over: text leaves out think tags with their whitespace and end of "
        "turn, so that the same words measure the same with and without tags; all is what training supervises. "
        "Changing it takes no further pass.",
    )
    measures: MeasureParams = Field(default=MeasureParams(), description="The cut-offs to measure at.")
    window: int | None = Field(
        default=None,
        ge=1,
        description="Steps of context for local naturalness, which takes about 1 + window times the tokens of forward "
        "passes; null leaves it out.",
    )
    steps: Granularity | None = Field(
        default=None, description="Cut steps this finely and add the mean surprisal of each; takes no further pass."
    )
    contrast: ContrastParams | None = Field(
        default=None,
        description="Compare the distributions of the student and a weaker model at every token; takes a forward pass "
        "of both.",
    )
    divergence: DivergenceParams | None = Field(
        default=None,
        description="Compare teacher and student sentence by sentence, where the teacher was sampled with "
        "`logprobs: true`; takes no further pass.",
    )


class ScoredStudent:
    """A student, in this worker's memory or served, and the store of its scores."""

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
        computed = dict(zip(missing, await self.student.score(list(missing.values())), strict=True))
        new = {trace_id: one for trace_id, one in computed.items() if isinstance(one, TokenScores)}
        self.store.put(new)
        return found | computed, len(new)

    async def naturalness(
        self, items: Sequence[tuple[Trace, Rendered]], window: int
    ) -> list[float | RequestFailed | None]:
        """Return the local naturalness of each trace over the steps of its body."""
        steps = [(item, [(step.start, step.end) for step in segment(_body(trace))]) for trace, item in items]
        return await local_naturalness(self.student, steps, window)

    async def close(self) -> None:
        """Nothing to end: weights go with the process, and servers are their client's."""


class MeasureStudent(Stage[MeasureStudentParams]):
    """Score every trace under the student and file the measures as `<student>/<name>`.

    A trace that cannot be rendered without loss, is longer than the student's context, or that its servers give no
    scores for, is a failed row. A served student tells no entropies, so measures of them are left out.
    """

    verb, name, version = "measure", "student", "3"
    Params = MeasureStudentParams
    host = Host.MODEL

    def uses(self, stage: StageSpec[MeasureStudentParams], pipeline: Pipeline) -> Mapping[str, Any]:
        model = pipeline.models[stage.params.student]
        environment = Environment(root=pipeline.project.root)
        student = {**model.identity(environment), "reasoning": model.require_checkpoint(environment).reasoning}
        used: dict[str, Any] = {"student": student, "scores": model.scores_key(environment)}
        if (contrast := stage.params.contrast) is not None:
            used["contrast"] = contrast_key(
                used["scores"], pipeline.models[contrast.amateur].scores_key(environment), contrast
            )
        return used

    def asks(self, stage: StageSpec[MeasureStudentParams], pipeline: Pipeline) -> str | None:
        return stage.params.student

    def columns(self, stage: StageSpec[MeasureStudentParams], pipeline: Pipeline) -> Sequence[Column]:
        params = stage.params
        entropies = pipeline.models[params.student].in_process
        columns = measure_columns(params.student, params.measures, params.over, entropies=entropies)
        if params.window is not None:
            columns.append(
                Column(
                    name=f"{params.student}/{local_name(params.window)}",
                    description=f"Mean log-probability of a token given the {params.window} steps before its own.",
                    unit="nats per token",
                    direction="higher",
                    source="arXiv 2510.03988",
                )
            )
        columns += [] if params.steps is None else step_columns(params.student)
        if params.contrast is not None:
            columns += contrast_columns(params.student, params.contrast, params.over)
        return columns + ([] if params.divergence is None else divergence_columns(params.student, params.divergence))

    def check(self, stage: StageSpec[MeasureStudentParams], pipeline: Pipeline) -> list[Mistake]:
        name = stage.params.student
        model = pipeline.models[name]
        if not model.scores_tokens:
            message = f"student: {name!r} is `use: {model.use}`; scores need `use: transformers` or `vllm`"
            return [Mistake(message)]
        if (contrast := stage.params.contrast) is not None:
            for one in (name, contrast.amateur):
                if not pipeline.models[one].in_process:
                    use = f"{one!r} is `use: {pipeline.models[one].use}`"
                    return [Mistake(f"contrast: {use}; whole distributions need `use: transformers`")]
        reported = {stage_of(one).reports_logprobs(one) for one in pipeline.above(stage)} - {None}
        if stage.params.divergence is not None and reported == {False}:
            hint = "set it there: it costs nothing"
            return [Mistake("divergence: no stage above samples with `logprobs: true`", hint=hint)]
        return []

    def scored_by(self, stage: StageSpec[MeasureStudentParams]) -> frozenset[str]:
        return frozenset({stage.params.student})

    def template_mistakes(self, stage: StageSpec[MeasureStudentParams], pipeline: Pipeline) -> list[Mistake]:
        return student_mistakes(stage, pipeline, stage.params.student)

    async def run(self, stage: StageSpec[MeasureStudentParams], batch: Batch, services: Services) -> Result:
        params, traces = stage.params, batch.traces
        student = open_scored(params.student, services)
        rendered, failed = _rendered(traces, student)
        left = {row_id: services.left_failure(stage.id, row_id) for row_id in rendered}
        wanted = {row_id: one for row_id, one in rendered.items() if not left[row_id]}
        scores, computed = await student.scores(wanted)
        scores |= {row_id: failure for row_id, failure in left.items() if failure is not None}
        scored = [one for one in traces if isinstance(scores.get(one.id), TokenScores)]
        contrasts: dict[str, TokenScores | RequestFailed] = {}
        if params.contrast is not None:
            pair = services.keep(
                f"contrast:{stage.id}", lambda: _open_contrast(stage, student, services), {params.student}
            )
            contrasts, more = await pair.scores({one.id: rendered[one.id] for one in scored})
            computed += more
        natural: dict[str, float | RequestFailed | None] = {}
        if params.window is not None:
            values = await student.naturalness([(one, rendered[one.id]) for one in scored], params.window)
            natural = dict(zip((one.id for one in scored), values, strict=True))
        diverging, why_not = _divergence(params, scored, scores, services)
        judged = []
        for trace in traces:
            if trace.id in failed:
                judged.append(Judgement(trace.id, failed[trace.id]))
                continue
            known, local = scores[trace.id], natural.get(trace.id)
            failure = next((one for one in (known, local) if isinstance(one, RequestFailed)), None)
            if failure is not None:
                judged.append(Judgement(trace.id, fail(failure.kind, str(failure), owed=failure.retryable)))
                continue
            found = _measures(params, trace, rendered[trace.id], known, contrasts.get(trace.id))
            if not found:
                judged.append(Judgement(trace.id, fail("no_text", "it has no words to measure over", owed=False)))
                continue
            found |= {} if local is None else {local_name(params.window or 0): local}
            found |= diverging.get(trace.id, {})
            judged.append(
                Judgement(trace.id, KEEP, {f"{params.student}/{name}": value for name, value in found.items()})
            )
        numbers = {"scored": float(len(scored)), "scored_now": float(computed)}
        numbers |= {f"no_divergence_{name}": number for name, number in why_not.items()}
        notes = [f"{stage.id}: traces that were not compared with their teacher: {name}" for name in why_not]
        return Result(judged=judged, numbers=numbers, notes=notes)


def _measures(params: MeasureStudentParams, trace: Trace, item: Rendered, scores: Any, contrast: Any) -> dict[str, Any]:
    """Return the measures of a trace from its stored scores; none when there are no tokens to measure over."""

    def over(every: TokenScores) -> TokenScores:
        whole = params.over is Over.ALL
        return every if whole else of_text(every, item.text, trace.reasoning, trace.answer_text)

    if not len(over(scores)):
        return {}
    found: dict[str, Any] = {**trace_measures(over(scores), params.measures), "tokens": float(len(scores))}
    if params.steps is not None:
        found |= step_measures(scores, _body(trace), params.steps)
    if params.contrast is not None:
        found |= contrast_measures(over(contrast), params.contrast)
    return found


def _divergence(
    params: MeasureStudentParams,
    scored: Sequence[Trace],
    scores: Mapping[str, TokenScores | RequestFailed],
    services: Services,
) -> tuple[dict[str, dict[str, float]], dict[str, float]]:
    """Return the measures of teacher against student by trace id, and how many traces have none, by reason."""
    if params.divergence is None:
        return {}, {}
    records = services.stored([trace.request_key for trace in scored if trace.request_key])
    found: dict[str, dict[str, float]] = {}
    why_not: dict[str, float] = {}
    for trace in scored:
        known = scores[trace.id]
        assert isinstance(known, TokenScores)
        logprobs = stored_logprobs(records.get(trace.request_key))
        measures = divergence_measures(trace, known, logprobs, params.divergence)
        if isinstance(measures, str):
            why_not[measures] = why_not.get(measures, 0.0) + 1.0
        else:
            found[trace.id] = measures
    return found, why_not


def student_mistakes(stage: StageSpec[Any], pipeline: Pipeline, name: str) -> list[Mistake]:
    """Return why a student's chat template cannot render what it should be trained on.

    Args:
        stage: the stage that scores traces with it.
        pipeline: its pipeline.
        name: the name of the student.
    """
    try:
        environment = Environment(root=pipeline.project.root)
        check_template(pipeline.models[name].require_checkpoint(environment))
    except UserError as error:
        what = f"stage {stage.id!r}: "
        return [Mistake(what + one.message, stage.file, stage.line, one.hint) for one in error.mistakes]
    return []


def open_scored(name: str, services: Services) -> ScoredStudent:
    """Return a student that scores: loaded into this worker once, or reached through its servers.

    Args:
        name: the name of the model.
        services: the services of the worker, which keeps the student.
    """
    return services.keep(f"student:{name}", lambda: _open(name, services), {name})


def _open(name: str, services: Services) -> ScoredStudent:
    model = services.pipeline.models[name]
    spec = model.require_checkpoint(services.environment)
    store = ScoreStore(services.state_dir, model.scores_key(services.environment))
    if model.in_process:
        return ScoredStudent(InProcess(open_student(spec)), store)
    client = services.client(name)
    return ScoredStudent(open_served(spec, client, model.longest_prompt), store)


def _open_contrast(stage: StageSpec[MeasureStudentParams], student: ScoredStudent, services: Services) -> ScoredStudent:
    """Return the pair of a stage's student, which is loaded already, and its amateur."""
    params = stage.params.contrast
    assert params is not None
    assert isinstance(student.student, InProcess)
    model, environment = services.pipeline.models[params.amateur], services.environment
    expert = cast("Student", student.student.student)
    pair = Contrast(expert, open_student(model.require_checkpoint(environment)), params)
    key = contrast_key(student.store.student_key, model.scores_key(environment), params)
    return ScoredStudent(InProcess(pair), ScoreStore(services.state_dir, key))


def _rendered(traces: Sequence[Trace], student: ScoredStudent) -> tuple[dict[str, Rendered], dict[str, Decision]]:
    """Return the renderings of traces by id, and the decision on each that cannot be rendered or is too long."""
    rendered: dict[str, Rendered] = {}
    failed: dict[str, Decision] = {}
    most = student.student.max_tokens
    for trace in traces:
        try:
            item = student.student.render(trace.problem.question, trace.reasoning, trace.answer_text)
        except RenderError as error:
            failed[trace.id] = fail(error.reason, str(error), owed=False)
            continue
        if most is not None and len(item) > most:
            detail = f"{len(item)} tokens, the student's context is {most}"
            failed[trace.id] = fail("longer_than_context", detail, owed=False)
        else:
            rendered[trace.id] = item
    return rendered, failed


def _body(trace: Trace) -> str:
    return trace.reasoning or trace.answer_text


STAGES.register("measure:student")(MeasureStudent())
