"""`prune: <name>`: cut the steps a reasoning can do without, and prove that what is left still reaches the answer.

A stage gives one row for every row it takes: the pruned trace, linked to its parent by `parent_id` and able to give the
parent's text back (`Trace.derivation`), or the row as it came, marked with the reason why its text stands. The rows it
was made from stay in the stage above. Whatever a pruner returns is verified here again.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tracefactory.config import Pipeline, StageConfig
from tracefactory.core.errors import Mistake
from tracefactory.core.fingerprint import digest
from tracefactory.core.op import OPS, STANDS, AtMost, Inputs, Rows, ShardOp, ShardResult
from tracefactory.core.schema import Dropped, Problem, Row, Thinking, Trace, Verdict
from tracefactory.engine.worker import Worker
from tracefactory.models.transformers import TransformersSpec
from tracefactory.models.vllm import VLLMSpec
from tracefactory.pruning import PRUNERS, PruneItem, PruneResult, Ruler, Tools, derive, measures, reverify
from tracefactory.serving.base import Where
from tracefactory.stages.measure.student import MeasureStudentParams
from tracefactory.stages.prune.asking import ServedModel
from tracefactory.stages.prune.bounds import bounds
from tracefactory.stages.prune.params import (
    StageParams,
    as_asking,
    as_pruner,
    as_stage,
    mistakes,
    params_of,
    prompts_of,
)
from tracefactory.stages.prune.student import student_of, with_scores
from tracefactory.stages.sample.chat import spent
from tracefactory.store.scores import ScoreStore
from tracefactory.store.stages import dropped_row
from tracefactory.students.spec import StudentSpec
from tracefactory.students.tokens import renderer, token_counter
from tracefactory.text.steps import VERSION as STEPS_VERSION
from tracefactory.text.steps.label import MODEL_RULE, relabel
from tracefactory.verification.base import VERIFIERS, VerifyTask

_ASKED_IN_VAIN = ("student_error", "writer_error")


class Prune(ShardOp):
    """One registered pruner as an operation. Only a request that may yet succeed makes an error row, not a fallback."""

    verb, version = "prune", "3"
    takes, gives = Rows.TRACES, Rows.TRACES
    many_inputs = True

    def __init__(self, name: str) -> None:
        # One operation per registered pruner: what is a class attribute elsewhere is decided here.
        self.name = name  # type: ignore[misc]
        self.Params = params_of(name)  # type: ignore[misc]

    def asks(self, stage: StageConfig) -> str | None:
        asking, types = as_asking(stage.params), as_stage(stage.params).types
        return asking.model if asking is not None else None if types is None else types.model

    def identity(self, stage: StageConfig, pipeline: Pipeline) -> dict[str, Any]:
        where = Where(root=pipeline.project.root)
        return {
            "pruner": PRUNERS.get(self.name).version,
            "steps": STEPS_VERSION,
            "verifiers": {name: VERIFIERS.get(name).version for name in VERIFIERS},
            "models": {name: pipeline.models[name].identity(where) for name in sorted(set(stage.model_names))},
            "prompts": {key: pipeline.prompts[name].digest for key, name in prompts_of(stage.params).items()},
        }

    def measures(self, stage: StageConfig, pipeline: Pipeline) -> frozenset[str]:
        return frozenset({"prune_*"})

    def check(self, stage: StageConfig, pipeline: Pipeline) -> list[Mistake]:
        found = list(mistakes(stage.params, pipeline))
        student = as_stage(stage.params).student
        if self._goes_by_scores and student not in _measured(stage, pipeline):
            hint = "name the student of a `measure: student` stage that it works on"
            found.append(Mistake(f"student: {student!r} is not measured above" if student else "no student", hint=hint))
        entropy = self._goes_by_scores and getattr(stage.params, "score", None) == "entropy"
        if entropy and student and isinstance(pipeline.models[student], VLLMSpec):
            hint = "go by `surprisal`, or measure it with `use: transformers`"
            found.append(Mistake(f"score: a served student ({student!r}) tells no entropies", hint=hint))
        return found

    def at_most(self, stage: StageConfig, pipeline: Pipeline, rows: Sequence[Row]) -> Mapping[str, AtMost]:
        items = [PruneItem.of(row, as_stage(stage.params).granularity) for row in rows if isinstance(row, Trace)]
        return bounds(stage.params, items, pipeline)

    @property
    def _goes_by_scores(self) -> bool:
        return "scores" in PRUNERS.get(self.name).needs

    async def run(self, stage: StageConfig, inputs: Inputs, worker: Worker) -> ShardResult:
        params, asking = as_stage(stage.params), as_asking(stage.params)
        traces = inputs.traces()
        items = [PruneItem.of(trace, params.granularity) for trace in traces]
        if self._goes_by_scores:
            items = await _scored(items, params, worker)
        typist = None if params.types is None else ServedModel(params.types, stage.id, worker)
        if typist is not None:
            items = await _typed(items, typist)
        model = None if asking is None else ServedModel(asking, stage.id, worker)
        verify = _verifier(worker)
        results = await as_pruner(stage.params).prune(items, Tools(verify=verify, student=model, writer=model))
        checked = await reverify(items, results, verify)
        making = _Making(stage, params, await _tokenizer(params, worker))
        kept: list[Trace] = []
        dropped: list[Dropped] = []
        for item, one in zip(items, checked, strict=True):
            failed = typist.failed.get(item.trace.id) if typist else None
            if failed is None and model and one.result.reason in _ASKED_IN_VAIN:
                failed = model.failed.get(item.trace.id)
            if failed is not None:
                dropped.append(dropped_row(item.trace, stage.id, failed.kind, str(failed), error=True))
            else:
                kept.append(making.row(item, one.result, one.verdict))
        return ShardResult(
            rows_in=len(traces),
            kept=kept,
            dropped=dropped,
            retryable=len(dropped),
            numbers={
                **_outcomes(results, checked_results=[one.result for one in checked]),
                **(_typed_steps(items) if typist else {}),
                **_paid([one for one in (typist, model) if one], worker),
            },
        )


@dataclass(frozen=True)
class _Making:
    """Makes the rows of one stage."""

    stage: StageConfig
    params: StageParams
    tokenizer: Callable[[str], int] | None

    def row(self, item: PruneItem, result: PruneResult, verdict: Verdict | None) -> Trace:
        """Return the pruned trace, or the parent marked with why it stands."""
        trace, ruler = item.trace, Ruler.of(item.trace, self.tokenizer)
        name, granularity = self.stage.name, self.params.granularity
        derivation = derive(item, result, pruner=name, granularity=granularity, ruler=ruler)
        said = {
            "derivation": derivation.model_dump_json(exclude_defaults=True),
            "measures": {**trace.measures, **measures(item, result, ruler)},
        }
        if derivation.edit is None:
            return trace.model_copy(update=said)
        lengths = derivation.edit.lengths
        share = lengths.pruned / lengths.parent if lengths.parent else 1.0
        made_by = {"parent": trace.id, "pruner": name, "with": self.params.model_dump(mode="json")}
        return trace.model_copy(
            update={
                **said,
                "id": digest(made_by)[:16],
                "parent_id": trace.id,
                "op": f"prune:{name}",
                "stage": self.stage.id,
                "reasoning": result.reasoning,
                "answer_text": result.answer_text,
                "thinking": Thinking.CLOSED,
                "finish_reason": "stop",
                "completion_tokens": round(trace.completion_tokens * share),
                "verdict": verdict,
            }
        )


async def _typed(items: Sequence[PruneItem], typist: ServedModel) -> list[PruneItem]:
    """Return the items with their steps typed by a model."""
    traces = [(item.trace.id, item.trace.problem.question, item.trace.reasoning, item.steps) for item in items]
    typed = await relabel(traces, typist)
    return [item.model_copy(update={"steps": steps}) for item, steps in zip(items, typed, strict=True)]


def _verifier(worker: Worker) -> Callable[[list[tuple[Problem, str]]], Any]:
    async def verify(pairs: list[tuple[Problem, str]]) -> list[Verdict]:
        tasks = [VerifyTask(problem=problem, answer_text=text) for problem, text in pairs]
        return await worker.verifiers.verify(tasks)

    return verify


async def _scored(items: Sequence[PruneItem], params: StageParams, worker: Worker) -> list[PruneItem]:
    """Return the items with what the measured student said of their steps."""
    assert params.student is not None
    model = worker.pipeline.models[params.student]
    assert isinstance(model, TransformersSpec | VLLMSpec)
    store = ScoreStore(worker.setup.root, model.scores_key(worker.where))
    written = await asyncio.to_thread(renderer, _student(params, worker))
    return with_scores(items, store, lambda one: written.render(one.problem.question, one.reasoning, one.answer_text))


async def _tokenizer(params: StageParams, worker: Worker) -> Callable[[str], int] | None:
    """Return what counts in the student's tokens; a tokenizer takes seconds to read, so other shards go on."""
    if params.student is None:
        return None
    return await asyncio.to_thread(token_counter, _student(params, worker))


def _student(params: StageParams, worker: Worker) -> StudentSpec:
    assert params.student is not None
    return student_of(worker.pipeline.models[params.student], worker.where)


def _measured(stage: StageConfig, pipeline: Pipeline) -> set[str]:
    """Return the students under which every trace that reaches the stage was scored."""
    ways = []
    for source in map(pipeline.stage, stage.inputs):
        own = {source.params.student} if isinstance(source.params, MeasureStudentParams) else set()
        # A pruned trace is another one, so its scores are too.
        ways.append(own if source.verb == "prune" else own | _measured(source, pipeline))
    return set.intersection(*ways) if ways else set()


def _outcomes(results: Sequence[PruneResult], checked_results: Sequence[PruneResult]) -> Mapping[str, float]:
    """Count what became of the rows, and the questions that were asked."""
    found: Counter[str] = Counter()
    for one in checked_results:
        found["pruned" if one.reason is None else STANDS + one.reason] += 1
    found["calls"] = sum(one.calls for one in results)
    return {name: float(count) for name, count in found.items()}


def _typed_steps(items: Sequence[PruneItem]) -> dict[str, float]:
    """Count the steps that the model typed, and those it said nothing of, which are typed by rules."""
    steps = [step for item in items for step in item.steps]
    by_model = sum(step.rule == MODEL_RULE for step in steps)
    return {"steps_typed_by_model": float(by_model), "steps_typed_by_rules": float(len(steps) - by_model)}


def _paid(models: Sequence[ServedModel], worker: Worker) -> dict[str, float]:
    if not models:
        return {}
    records = [record for model in models for record in model.records.values()]
    mine = [record for record in records if record["run"] == worker.setup.run_id]
    return spent(records) | {f"paid_{name}": number for name, number in spent(mine).items()}


for _name in PRUNERS:
    OPS.register(f"prune:{_name}")(Prune(_name))
