"""A trial of teachers: a small pipeline that samples some traces of each and measures them under the student.

It consists of the stages of the user's pipeline, so that a trial and a run share completions and results: equal
problem, prompt and parameters are the same request, and equal stage and request are the same trace.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tracefactory.core.environment import Environment, env_names
from tracefactory.core.errors import Mistake, UserError, nearest
from tracefactory.core.model import ModelSpec
from tracefactory.core.pipeline import Pipeline, StageSpec
from tracefactory.core.rows import Frozen
from tracefactory.core.stage import STAGES, stage_of

CHECKED, MEASURED = "teachers-checked", "teachers-measured"
CHAT, VERIFY, JUDGE, MEASURE = "sample:chat", "verify:auto", "verify:judge", "measure:student"


@dataclass(frozen=True)
class Candidate:
    """A teacher in the trial, and the stage that samples from it."""

    stage: StageSpec[Any]
    model: str


@dataclass(frozen=True)
class Trial:
    """The pipeline to run, the student that measures, and the teachers in the order of the file."""

    pipeline: Pipeline
    student: str
    candidates: tuple[Candidate, ...]

    @property
    def judged(self) -> bool:
        """Whether a model judges answers too, at a cost that is not known in advance."""
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
    """Return the trial of a pipeline's teachers on its first `problems` problems, with one sample per problem.

    The teachers are the models of all `sample:` stages, once per stage, and the served models that no stage uses, with
    the prompt and the parameters of the first `sample: chat` stage; `teachers` restricts them. A model that only
    judges, prunes or rewrites is included when `teachers` names it. The student is that of the pipeline's `measure:
    student` stage, or its only `use: transformers` model. Verdicts are from the pipeline's first `verify: auto` and
    `verify: judge`. `window` adds local naturalness.

    Raises:
        UserError: with all mistakes, before any request is sent.
    """
    mistakes: list[Mistake] = []
    student_name = _student(pipeline, student, mistakes)
    candidates = _candidates(pipeline, teachers, student_name, mistakes)
    if mistakes or student_name is None:
        raise UserError(mistakes)
    sources = {name for one in candidates for name in one.stage.inputs}
    stages = [stage for stage in pipeline.stages if stage.id in sources]
    stages += [one.stage for one in candidates]
    stages += _verify_stages(pipeline, tuple(one.stage.id for one in candidates))
    stages.append(_measure_stage(pipeline, student_name, window, stages[-1].id))
    derived = pipeline.model_copy(
        update={
            "name": f"{pipeline.name}-teachers",
            "billed_to": pipeline.billed_to or pipeline.name,
            "stages": tuple(stages),
            "limit": problems,
            "run": pipeline.run.model_copy(update={"max_error_rate": 1.0}),  # a teacher that fails is a result
        }
    )
    used = {student_name, *(name for stage in stages for name in stage.model_names)}
    environment = Environment(pipeline.project.root, environ)
    unmet = [mistake for name in sorted(used) for mistake in _missing(name, pipeline.models[name], environment)]
    unmet += stage_of(stages[-1]).check(stages[-1], derived)
    if unmet:
        raise UserError([replace(one, file=one.file or pipeline.file) for one in unmet])
    return Trial(derived, student_name, candidates)


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
        hint = "use --student NAME" if found else "declare one under models:"
        mistakes.append(Mistake(text, pipeline.file, hint=hint))
        return None
    return found[0]


def _candidates(
    pipeline: Pipeline, only: Sequence[str], student: str | None, mistakes: list[Mistake]
) -> tuple[Candidate, ...]:
    sampling = [stage for stage in pipeline.stages if stage.verb == "sample"]
    if not sampling:
        mistakes.append(Mistake("no teacher to try: the pipeline has no sample stage", pipeline.file))
        return ()
    found = [Candidate(_single_sample(stage), stage_of(stage).asks(stage, pipeline) or "") for stage in sampling]
    chat = next((stage for stage in sampling if stage.op == CHAT), None)
    used = {name for stage in pipeline.stages for name in stage.model_names}
    others = [name for name, spec in pipeline.models.items() if not spec.in_process]
    if chat is not None:
        asked = [name for name in others if name not in {*used, student} or name in only]
        there = {one.model for one in found}
        once = _single_sample(chat)
        for name in (one for one in asked if one not in there):
            params = once.params.model_copy(update={"model": name})
            found.append(Candidate(once.model_copy(update={"id": f"teacher-{name}", "params": params}), name))
    known = {one.model for one in found} | set(others if chat is not None else ())
    for name in only:
        if name not in known:
            mistakes.append(Mistake(f"--teacher: unknown teacher {name!r}", pipeline.file, hint=nearest(name, known)))
    return tuple(one for one in found if not only or one.model in only)


def _single_sample(stage: StageSpec[Any]) -> StageSpec[Any]:
    """Return a copy of a sample stage with one sample."""
    return stage.model_copy(update={"params": stage.params.model_copy(update={"samples": 1})})


def _verify_stages(pipeline: Pipeline, inputs: tuple[str, ...]) -> Iterator[StageSpec[Any]]:
    """Yield the pipeline's verification stages, after the teachers."""
    policies = [stage.params for stage in pipeline.stages if stage.op == VERIFY]
    yield _stage(pipeline, CHECKED, VERIFY, policies[0] if policies else STAGES.get(VERIFY).Params(), inputs)
    judges = [stage.params for stage in pipeline.stages if stage.op == JUDGE]
    if judges:
        yield _stage(pipeline, "teachers-judged", JUDGE, judges[0], (CHECKED,))


def _measure_stage(pipeline: Pipeline, student: str, window: int | None, checked: str) -> StageSpec[Any]:
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


def _missing(name: str, spec: ModelSpec, environment: Environment) -> Iterator[Mistake]:
    """Yield the requirements of a model that this machine does not meet."""
    unset = [variable for variable in env_names(spec) if not environment.environ.get(variable)]
    yield from (Mistake(f"model {name!r}: the environment variable {variable} is not set") for variable in unset)
    for mistake in () if unset else spec.check(environment):
        yield Mistake(f"model {name!r}: {mistake.message}", mistake.file, mistake.line, mistake.hint)
