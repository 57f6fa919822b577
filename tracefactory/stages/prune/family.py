"""`prune: <pruner>`: cut the steps a reasoning can do without, and check that what is left still reaches the answer.

For every row it is given, the stage passes on either a pruned trace, linked to its parent by `Trace.parents` and able
to give the parent's text back (`Trace.derivation`), or the row as it was, with the reason why it was not pruned.
Whatever a pruner returns is verified again.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tracefactory.core.checkpoint import Checkpoint
from tracefactory.core.columns import DERIVATION, VERDICT, Column
from tracefactory.core.decisions import KEEP, REPLACED, Decision, Judgement, Made, fail
from tracefactory.core.environment import Environment
from tracefactory.core.errors import Mistake
from tracefactory.core.fingerprint import digest
from tracefactory.core.keys import pinned
from tracefactory.core.pipeline import Pipeline, StageSpec
from tracefactory.core.rows import ID_DIGITS, Kind, Parent, ParentRole, Problem, Thinking, Trace, Verdict
from tracefactory.core.stage import UNCHANGED, AtMost, Batch, Host, Result, Services, Stage, stage_of, verify
from tracefactory.pruning import PRUNERS, LengthCounter, PruneItem, PruneResult, Tools, derive, measures, reverify
from tracefactory.pruning.measures import COLUMNS
from tracefactory.stages._sampling import spent
from tracefactory.stages._verdicts import verifier_versions
from tracefactory.stages.prune._bounds import bounds
from tracefactory.stages.prune._models import ServedModel
from tracefactory.stages.prune._params import asked_model, mistakes, params_of, prompts_of
from tracefactory.stages.prune._student import with_scores
from tracefactory.store.scores import ScoreStore
from tracefactory.students.tokens import renderer, token_counter
from tracefactory.text.steps import VERSION as STEPS_VERSION
from tracefactory.text.steps.label import MODEL_RULE, relabel
from tracefactory.verification.base import VerifyTask

_NO_ANSWER = ("student_error", "writer_error")


class Prune(Stage[Any]):
    """One registered pruner as an operation. Only a request that may yet succeed makes a failed row, not a fallback."""

    verb, version = "prune", "4"
    makes, judges = Kind.TRACES, True
    host = Host.MODEL

    def __init__(self, name: str) -> None:
        # One operation for every registered pruner: what is a class attribute elsewhere is decided here.
        self.name = name  # type: ignore[misc]
        self.Params = params_of(name)  # type: ignore[misc]

    def asks(self, stage: StageSpec[Any], pipeline: Pipeline) -> str | None:
        types = stage.params.types
        return asked_model(stage.params) or (None if types is None else types.model)

    def uses(self, stage: StageSpec[Any], pipeline: Pipeline) -> Mapping[str, Any]:
        environment = Environment(root=pipeline.project.root)
        named = [one for one in _models(stage.params) if one is not None]
        return {
            "versions": {
                "pruner": PRUNERS.get(self.name).version,
                "steps": STEPS_VERSION,
                "verifiers": verifier_versions(stage, pipeline),
            },
            "models": {name: pipeline.models[name].identity(environment) for name in sorted(set(named))},
            "prompts": {key: pipeline.prompts[name].digest for key, name in prompts_of(stage.params).items()},
        }

    def columns(self, stage: StageSpec[Any], pipeline: Pipeline) -> Sequence[Column]:
        return [*COLUMNS, VERDICT, DERIVATION]

    def check(self, stage: StageSpec[Any], pipeline: Pipeline) -> list[Mistake]:
        found = list(mistakes(stage.params, pipeline))
        student = stage.params.student
        if self._goes_by_scores and student not in _measured(stage, pipeline):
            hint = "name the student of a `measure: student` stage that it works on"
            found.append(Mistake(f"student: {student!r} is not measured above" if student else "no student", hint=hint))
        entropy = self._goes_by_scores and getattr(stage.params, "score", None) == "entropy"
        if entropy and student and not pipeline.models[student].in_process:
            hint = "go by `surprisal`, or measure it with `use: transformers`"
            found.append(Mistake(f"score: a served student ({student!r}) tells no entropies", hint=hint))
        return found

    def at_most(self, stage: StageSpec[Any], pipeline: Pipeline, batch: Batch) -> Mapping[str, AtMost]:
        if self.asks(stage, pipeline) is None:
            return {}
        items = [PruneItem.of(trace, stage.params.granularity) for trace in batch.traces]
        return bounds(stage.params, items, pipeline)

    @property
    def _goes_by_scores(self) -> bool:
        return "scores" in PRUNERS.get(self.name).needs

    async def run(self, stage: StageSpec[Any], batch: Batch, services: Services) -> Result:
        params = stage.params
        owners = {trace.id: trace.problem_id for trace in batch.traces}
        items = [PruneItem.of(trace, params.granularity) for trace in batch.traces]
        if self._goes_by_scores:
            items = await _scored(items, params, services)
        labeller = None if params.types is None else ServedModel(params.types, stage.id, services, owners)
        if labeller is not None:
            items = await _typed(items, labeller)
        model = None if asked_model(params) is None else ServedModel(params, stage.id, services, owners)
        check = _verifier(services)
        results = await params.prune(items, Tools(verify=check, student=model, writer=model))
        checked = await reverify(items, results, check)
        rows = _Rows(stage, params, await _tokenizer(params, services), _problem_columns(stage, services.pipeline))
        judged: list[Judgement] = []
        made: list[Made] = []
        for item, one in zip(items, checked, strict=True):
            failure = labeller.failed.get(item.trace.id) if labeller else None
            if failure is None and model and one.result.reason in _NO_ANSWER:
                failure = model.failed.get(item.trace.id)
            if failure is not None:
                judged.append(Judgement(item.trace.id, fail(failure.kind, str(failure), owed=True)))
                continue
            judgement, pruned = rows.of(item, one.result, one.verdict)
            judged.append(judgement)
            made += [] if pruned is None else [Made(pruned)]
        return Result(
            made=made,
            judged=judged,
            numbers={
                **_outcomes(results, checked_results=[one.result for one in checked]),
                **(_typed_steps(items) if labeller else {}),
                **_spent([one for one in (labeller, model) if one], services),
            },
        )


def make(name: str) -> Prune:
    """Return the operation of one pruner."""
    return Prune(name)


@dataclass(frozen=True)
class _Rows:
    """Makes the rows of one stage. `inherited` are the columns that a pruned trace has of its parent's problem."""

    stage: StageSpec[Any]
    params: Any
    tokenizer: Callable[[str], int] | None
    inherited: Sequence[Column]

    def of(self, item: PruneItem, result: PruneResult, verdict: Verdict | None) -> tuple[Judgement, Trace | None]:
        """Return what is said of the parent, and the pruned trace where there is one."""
        trace, counter = item.trace, LengthCounter.of(item.trace, self.tokenizer)
        name, granularity = self.stage.name, self.params.granularity
        derivation = derive(item, result, pruner=name, granularity=granularity, counter=counter)
        derived, found = derivation.model_dump_json(exclude_defaults=True), measures(item, result, counter)
        if derivation.edit is None:
            return Judgement(trace.id, KEEP, {DERIVATION.name: derived, **found}), None
        lengths = derivation.edit.lengths
        share = lengths.pruned / lengths.parent if lengths.parent else 1.0
        made_by = {"parent": trace.id, "pruner": name, "with": pinned(self.params)}
        kept = {
            name: value for name, value in trace.measures.items() if any(one.covers(name) for one in self.inherited)
        }
        pruned = trace.model_copy(
            update={
                "id": digest(made_by)[:ID_DIGITS],
                "parents": (Parent(id=trace.id, role=ParentRole.PRUNED),),
                "op": f"prune:{name}",
                "stage": self.stage.id,
                "reasoning": result.reasoning,
                "answer_text": result.answer_text,
                "thinking": Thinking.CLOSED,
                "finish_reason": "stop",
                "completion_tokens": round(trace.completion_tokens * share),
                "verdict": verdict,
                "derivation": derived,
                "measures": {**kept, **found},
                "steps": (),
            }
        )
        return Judgement(trace.id, Decision(REPLACED, pruned.id)), pruned


def _models(params: Any) -> list[str | None]:
    return [asked_model(params), None if params.types is None else params.types.model, params.student]


def _problem_columns(stage: StageSpec[Any], pipeline: Pipeline) -> list[Column]:
    """Return the columns above the stage that are about the problem, not about the text of the trace."""
    above = pipeline.above(stage)
    return [one for other in above for one in stage_of(other).columns(other, pipeline) if one.about == "problem"]


async def _typed(items: Sequence[PruneItem], labeller: ServedModel) -> list[PruneItem]:
    """Return the items with their steps typed by a model."""
    traces = [(item.trace.id, item.trace.problem.question, item.trace.reasoning, item.steps) for item in items]
    typed = await relabel(traces, labeller)
    return [item.model_copy(update={"steps": steps}) for item, steps in zip(items, typed, strict=True)]


def _verifier(services: Services) -> Callable[[list[tuple[Problem, str]]], Any]:
    async def check(pairs: list[tuple[Problem, str]]) -> list[Verdict]:
        return await verify([VerifyTask(problem=problem, answer_text=text) for problem, text in pairs], services)

    return check


async def _scored(items: Sequence[PruneItem], params: Any, services: Services) -> list[PruneItem]:
    """Return the items with the scores of their steps under the measured student."""
    model = services.pipeline.models[params.student]
    store = ScoreStore(services.state_dir, model.scores_key(services.environment))
    written = await asyncio.to_thread(renderer, _student(params, services))
    return with_scores(items, store, lambda one: written.render(one.problem.question, one.reasoning, one.answer_text))


async def _tokenizer(params: Any, services: Services) -> Callable[[str], int] | None:
    """Return what counts in the student's tokens; a tokenizer takes seconds to read, so other shards go on."""
    if params.student is None:
        return None
    return await asyncio.to_thread(token_counter, _student(params, services))


def _student(params: Any, services: Services) -> Checkpoint:
    return services.pipeline.models[params.student].require_checkpoint(services.environment)


def _measured(stage: StageSpec[Any], pipeline: Pipeline) -> frozenset[str]:
    """Return the students under which every trace that reaches the stage was scored."""
    ways = []
    for source in map(pipeline.stage, stage.inputs):
        op = stage_of(source)
        # A trace that was written anew, such as a pruned one, has no scores yet.
        above = frozenset[str]() if op.makes is Kind.TRACES else _measured(source, pipeline)
        ways.append(op.scored_by(source) | above)
    return frozenset.intersection(*ways) if ways else frozenset()


def _outcomes(results: Sequence[PruneResult], checked_results: Sequence[PruneResult]) -> Mapping[str, float]:
    """Count what became of the rows, and the questions that were asked."""
    found: Counter[str] = Counter()
    for one in checked_results:
        found["pruned" if one.reason is None else UNCHANGED + one.reason] += 1
    found["calls"] = sum(one.calls for one in results)
    return {name: float(count) for name, count in found.items()}


def _typed_steps(items: Sequence[PruneItem]) -> dict[str, float]:
    """Count the steps that the model typed, and those it said nothing of, which are typed by rules."""
    steps = [step for item in items for step in item.steps]
    by_model = sum(step.rule == MODEL_RULE for step in steps)
    return {"steps_typed_by_model": float(by_model), "steps_typed_by_rules": float(len(steps) - by_model)}


def _spent(models: Sequence[ServedModel], services: Services) -> dict[str, float]:
    records = [record for model in models for record in model.records.values()]
    return spent(records, services.run_id) if models else {}
