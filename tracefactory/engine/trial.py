"""A trial of teachers: the small pipeline that samples a little from each and measures it under the student.

It is made of the stages of the pipeline it is for, so that a trial and a run share what they paid for and computed: the
same problem, prompt and parameters are the same request, and the same stage and request are the same trace.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tracefactory.core.errors import Mistake, UserError, nearest
from tracefactory.core.model import Environment, ModelSpec, env_names
from tracefactory.core.pipeline import Pipeline, StageSpec
from tracefactory.core.rows import Frozen
from tracefactory.core.stage import STAGES, stage_of

CHECKED, MEASURED = "teachers-checked", "teachers-measured"
CHAT, VERIFY, JUDGE, MEASURE = "sample:chat", "verify:auto", "verify:judge", "measure:student"


@dataclass(frozen=True)
class Candidate:
    """A teacher on trial: the stage that samples from it."""

    stage: StageSpec[Any]
    model: str


@dataclass(frozen=True)
class Trial:
    """The pipeline to run, the student it measures under, and the teachers in it, in the order of the file."""

    pipeline: Pipeline
    student: str
    candidates: tuple[Candidate, ...]

    @property
    def judged(self) -> bool:
        """Whether a model is asked about verdicts besides, which costs what is known once it was asked."""
        return any(stage.op == JUDGE for stage in self.pipeline.stages)


def trial_of(
    pipeline: Pipeline,
    problems: int,
    *,
    student: str | None = None,
    teachers: Sequence[str] = (),
    window: int | None = None,
    environ: Mapping[str, str] = os.environ,
) -> Trial:
    """Return the trial of a pipeline's teachers on its first `problems` problems, one sample of each teacher for each.

    On trial are, once per stage, the models of all `sample:` stages, and every served model that no stage uses, with
    the prompt and the parameters of the first `sample: chat` stage; or just those of them called in `teachers`. A model
    that only judges, prunes or rewrites is on trial when `teachers` names it. The student is that of the pipeline's
    `measure: student` stage, or its one `use: transformers` model. Verdicts are those of the pipeline's first `verify:
    auto` and `verify: judge`. `window` adds local naturalness.

    Raises:
        UserError: with everything that does not fit, before anything is asked.
    """
    mistakes: list[Mistake] = []
    judged_by = _student(pipeline, student, mistakes)
    candidates = _candidates(pipeline, teachers, judged_by, mistakes)
    if mistakes or judged_by is None:
        raise UserError(mistakes)
    sources = {name for one in candidates for name in one.stage.inputs}
    stages = [stage for stage in pipeline.stages if stage.id in sources]
    stages += [one.stage for one in candidates]
    stages += _verifying(pipeline, tuple(one.stage.id for one in candidates))
    stages.append(_measuring(pipeline, judged_by, window, stages[-1].id))
    derived = pipeline.model_copy(
        update={"name": f"{pipeline.name}-teachers", "stages": tuple(stages), "limit": problems}
    )
    used = {judged_by, *(name for stage in stages for name in stage.model_names)}
    environment = Environment(pipeline.project.root, environ)
    wrong = [mistake for name in sorted(used) for mistake in _lacks(name, pipeline.models[name], environment)]
    wrong += stage_of(stages[-1]).check(stages[-1], derived)
    if wrong:
        raise UserError([replace(one, file=one.file or pipeline.file) for one in wrong])
    return Trial(derived, judged_by, candidates)


def _student(pipeline: Pipeline, named: str | None, mistakes: list[Mistake]) -> str | None:
    models = pipeline.models
    loaded = sorted(name for name, spec in models.items() if spec.in_process)
    measured = list(dict.fromkeys(params.student for params in _measures(pipeline)))
    if named is not None and named not in models:
        hint = nearest(named, loaded or models)
        mistakes.append(Mistake(f"--student: unknown model {named!r}", pipeline.file, hint=hint))
        return None
    found = [named] if named is not None else measured or loaded
    if len(found) != 1:
        text = f"which student? {', '.join(found)}" if found else "no student: no model is `use: transformers`"
        hint = "say --student NAME" if found else "declare one under models:"
        mistakes.append(Mistake(text, pipeline.file, hint=hint))
        return None
    return found[0]


def _candidates(
    pipeline: Pipeline, only: Sequence[str], student: str | None, mistakes: list[Mistake]
) -> tuple[Candidate, ...]:
    sampling = [stage for stage in pipeline.stages if stage.verb == "sample"]
    if not sampling:
        mistakes.append(Mistake("no teacher to try: no stage samples", pipeline.file))
        return ()
    found = [Candidate(_once(stage), stage_of(stage).asks(stage, pipeline) or "") for stage in sampling]
    chat = next((stage for stage in sampling if stage.op == CHAT), None)
    used = {name for stage in pipeline.stages for name in stage.model_names}
    others = [name for name, spec in pipeline.models.items() if not spec.in_process]
    if chat is not None:
        asked = [name for name in others if name not in {*used, student} or name in only]
        there = {one.model for one in found}
        found += [Candidate(_like(chat, name), name) for name in asked if name not in there]
    known = {one.model for one in found} | set(others if chat is not None else ())
    for name in only:
        if name not in known:
            mistakes.append(Mistake(f"--teacher: unknown teacher {name!r}", pipeline.file, hint=nearest(name, known)))
    return tuple(one for one in found if not only or one.model in only)


def _once(stage: StageSpec[Any]) -> StageSpec[Any]:
    """Return a sample stage that takes the first of its samples."""
    return stage.model_copy(update={"params": stage.params.model_copy(update={"samples": 1})})


def _like(stage: StageSpec[Any], model: str) -> StageSpec[Any]:
    """Return a stage that samples from another model as `stage` does from its own."""
    once = _once(stage)
    return once.model_copy(update={"id": f"teacher-{model}", "params": once.params.model_copy(update={"model": model})})


def _verifying(pipeline: Pipeline, inputs: tuple[str, ...]) -> Iterator[StageSpec[Any]]:
    """Yield the pipeline's own verification, put behind the teachers on trial."""
    policies = [stage.params for stage in pipeline.stages if stage.op == VERIFY]
    yield _stage(pipeline, CHECKED, VERIFY, policies[0] if policies else STAGES.get(VERIFY).Params(), inputs)
    judges = [stage.params for stage in pipeline.stages if stage.op == JUDGE]
    if judges:
        yield _stage(pipeline, "teachers-judged", JUDGE, judges[0], (CHECKED,))


def _measuring(pipeline: Pipeline, student: str, window: int | None, checked: str) -> StageSpec[Any]:
    own = [params for params in _measures(pipeline) if params.student == student]
    params = own[0] if own else STAGES.get(MEASURE).Params(student=student)
    if window is not None:
        params = params.model_copy(update={"window": window})
    return _stage(pipeline, MEASURED, MEASURE, params, (checked,))


def _measures(pipeline: Pipeline) -> list[Any]:
    return [stage.params for stage in pipeline.stages if stage.op == MEASURE]


def _stage(pipeline: Pipeline, stage_id: str, op: str, params: Frozen, inputs: tuple[str, ...]) -> StageSpec[Any]:
    verb, _, name = op.partition(":")
    return StageSpec(id=stage_id, verb=verb, name=name, inputs=inputs, params=params, file=pipeline.file, line=1)


def _lacks(name: str, spec: ModelSpec, environment: Environment) -> Iterator[Mistake]:
    """Yield what a model needs and this machine does not have."""
    unset = [variable for variable in env_names(spec) if not environment.environ.get(variable)]
    yield from (Mistake(f"model {name!r}: the environment variable {variable} is not set") for variable in unset)
    for mistake in () if unset else spec.check(environment):
        yield Mistake(f"model {name!r}: {mistake.message}", mistake.file, mistake.line, mistake.hint)
