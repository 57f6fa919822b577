"""`prune: <pruner>`: cut the steps a reasoning can do without, and check that what is left still reaches the answer.

For every row it is given, the stage passes on either a pruned trace, linked to its parent by `Trace.parents` and able
to give the parent's text back (`Trace.derivation`), or the row as it was, with the reason why it was not pruned.
Whatever a pruner returns is verified again.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from tracefactory.core.columns import DERIVATION, VERDICT, Column
from tracefactory.core.decisions import KEEP, REPLACED, Decision, Judgement, Made, fail
from tracefactory.core.environment import Environment
from tracefactory.core.errors import Mistake
from tracefactory.core.fingerprint import digest
from tracefactory.core.gpus import unheld_gpus
from tracefactory.core.keys import pinned
from tracefactory.core.pipeline import Pipeline, StageSpec
from tracefactory.core.rows import ID_DIGITS, Kind, Parent, ParentRole, Problem, Thinking, Trace, Verdict
from tracefactory.core.stage import (
    UNCHANGED,
    AtMost,
    Batch,
    Facts,
    Host,
    Result,
    RowReader,
    Services,
    Stage,
    stage_of,
    verify,
)
from tracefactory.core.upgrade import Upgrade
from tracefactory.pruning import (
    PRUNERS,
    Checked,
    LengthCounter,
    PruneItem,
    PruneResult,
    Tools,
    derive,
    measures,
    reverify,
)
from tracefactory.pruning.measures import CHECK, COLUMNS, STATES, evidence_measures, what_was_checked
from tracefactory.stages._sampling import spent
from tracefactory.stages._templates import prompt_mistakes
from tracefactory.stages._verdicts import verifier_versions
from tracefactory.stages.measure.student import open_scored, student_mistakes
from tracefactory.stages.prune._bounds import bounds
from tracefactory.stages.prune._models import ServedModel
from tracefactory.stages.prune._params import asked_model, concluder, mistakes, params_of, prompts_of
from tracefactory.stages.prune._scorer import StudentScorer
from tracefactory.stages.prune._student import with_scores
from tracefactory.store.scores import ScoreStore
from tracefactory.students.tokens import renderer, token_counter
from tracefactory.text.steps import VERSION as STEPS_VERSION
from tracefactory.text.steps.label import MODEL_RULE, relabel
from tracefactory.verification.base import VerifyTask

_NO_ANSWER = ("student_error", "writer_error")
_CHANGES = {
    "6": "the answer that the pruned reasoning states is read again, and nothing is cut where it is another one, or "
    "where the reasoning would end before the result of a calculation"
}
"""What a version of all `prune:` stages does otherwise than the version before."""


class Prune(Stage[Any]):
    """One registered pruner as an operation. Only a request that may yet succeed makes a failed row, not a fallback."""

    verb, version = "prune", "6"
    makes, judges = Kind.TRACES, True
    host = Host.MODEL

    def __init__(self, name: str) -> None:
        # One operation for every registered pruner: what is a class attribute elsewhere is decided here.
        self.name = name  # type: ignore[misc]
        self.Params = params_of(name)  # type: ignore[misc]

    def asks(self, stage: StageSpec[Any], pipeline: Pipeline) -> str | None:
        types = stage.params.types
        checks = concluder(stage.params)
        return (
            asked_model(stage.params)
            or (stage.params.student if self._needs("scorer") else None)
            or (None if types is None else types.model)
            or (None if checks is None else checks.model)
        )

    def uses(self, stage: StageSpec[Any], pipeline: Pipeline) -> Mapping[str, Any]:
        environment = Environment(root=pipeline.project.root)
        params = stage.params
        asked = (asked_model(params), params.types and params.types.model, params.student)
        scores = pipeline.models[params.student].scores_key(environment) if self._needs("scorer") else None
        return {
            "versions": {
                "pruner": PRUNERS.get(self.name).version,
                "steps": STEPS_VERSION,
                "verifiers": verifier_versions(stage, pipeline),
            },
            "models": {
                name: pipeline.models[name].identity(environment) for name in sorted({name for name in asked if name})
            },
            "prompts": {key: pipeline.prompts[name].digest for key, name in prompts_of(stage.params).items()},
            "scores": scores,
        }

    def columns(self, stage: StageSpec[Any], pipeline: Pipeline) -> Sequence[Column]:
        return [*COLUMNS, *PRUNERS.get(self.name).columns, VERDICT, DERIVATION]

    def facts(self, stage: StageSpec[Any], numbers: Mapping[str, float]) -> Facts:
        """Say what was checked of the pruned traces, and what their pruner does not show."""
        caution = PRUNERS.get(self.name).caution
        told = f"{_checked(stage.params, numbers)}. {caution}" if caution else _checked(stage.params, numbers)
        return Facts(notes=[f"{stage.id}: {told}"])

    def upgrade(
        self, stage: StageSpec[Any], pipeline: Pipeline, before: Mapping[str, Any], rows: RowReader | None
    ) -> Upgrade | None:
        """Tell in words what is cut and checked otherwise than by the versions of a stored stage."""
        pruner, versions = PRUNERS.get(self.name), before["uses"].get("versions", {})
        changed = [*_since(before["version"], self.version, _CHANGES)]
        changed += _since(versions.get("pruner", ""), pruner.version, pruner.changes)
        return Upgrade(words=tuple(f"{self.name}: {one}" for one in changed)) if changed else None

    def check(self, stage: StageSpec[Any], pipeline: Pipeline) -> list[Mistake]:
        params, student = stage.params, stage.params.student
        checks = concluder(params)
        asked = {asked_model(params), params.types and params.types.model, checks and checks.model} - {None}
        found = [*mistakes(params, pipeline), *unheld_gpus(asked, stage, pipeline)]
        if self._needs("scorer") and (student is None or not pipeline.models[student].scores_tokens):
            use = "no student" if student is None else f"{student!r} is `use: {pipeline.models[student].use}`"
            found.append(Mistake(f"student: {use}; scores need `use: transformers` or `vllm`"))
        if self._needs("scores") and student not in _measured(stage, pipeline):
            hint = "name the student of a `measure: student` stage that it works on"
            found.append(Mistake(f"student: {student!r} is not measured above" if student else "no student", hint=hint))
        entropy = self._needs("scores") and getattr(stage.params, "score", None) == "entropy"
        if entropy and student and not pipeline.models[student].in_process:
            hint = "go by `surprisal`, or measure it with `use: transformers`"
            found.append(Mistake(f"score: a served student ({student!r}) tells no entropies", hint=hint))
        return found

    def template_mistakes(self, stage: StageSpec[Any], pipeline: Pipeline) -> list[Mistake]:
        params, checks = stage.params, concluder(stage.params)
        models = {"types": params.types and params.types.model, "conclude": checks and checks.model}
        found: list[Mistake] = []
        for key, prompt in prompts_of(params).items():
            found += prompt_mistakes(stage, pipeline, prompt, models.get(key) or params.model)
        if self._needs("scorer"):
            found += student_mistakes(stage, pipeline, params.student)
        return found

    def at_most(self, stage: StageSpec[Any], pipeline: Pipeline, batch: Batch) -> Mapping[str, AtMost]:
        if self.asks(stage, pipeline) is None:
            return {}
        items = [PruneItem.of(trace, stage.params.granularity) for trace in batch.traces]
        return bounds(stage.params, items, pipeline)

    def _needs(self, service: str) -> bool:
        return service in PRUNERS.get(self.name).needs

    async def run(self, stage: StageSpec[Any], batch: Batch, services: Services) -> Result:
        params = stage.params
        owners = {trace.id: trace.problem_id for trace in batch.traces}
        left = {
            trace.id: failure
            for trace in batch.traces
            if (failure := services.left_failure(stage.id, trace.id)) is not None
        }
        items = [PruneItem.of(trace, params.granularity) for trace in batch.traces if trace.id not in left]
        spec = None if params.student is None else services.pipeline.models[params.student]
        student = None if spec is None else spec.require_checkpoint(services.environment)
        if spec is not None and student is not None and self._needs("scores"):
            scores = ScoreStore(services.state_dir, spec.scores_key(services.environment))
            items = with_scores(items, scores, await asyncio.to_thread(renderer, student))
        labeller = None if params.types is None else ServedModel(params.types, stage.id, services, owners)
        if labeller is not None:
            items = await _typed(items, labeller)
        model = None if asked_model(params) is None else ServedModel(params, stage.id, services, owners)
        # A tokenizer takes seconds to read, so other shards go on.
        tokenizer = None if student is None else await asyncio.to_thread(token_counter, student)
        verified = partial(_verified, services)
        scorer = StudentScorer(open_scored(params.student, services)) if self._needs("scorer") else None
        tools = Tools(verify=verified, student=model, writer=model, scorer=scorer, count=tokenizer or len)
        results = await params.prune(items, tools)
        checks = concluder(params)
        by_problem = {problem: problem for problem in owners.values()}  # the control without reasoning is a problem's
        checker = None if checks is None else ServedModel(checks, stage.id, services, owners | by_problem)
        checked = await reverify(items, results, verified, checks, checker)
        rows = _Rows(stage, params, tokenizer, _problem_columns(stage, services.pipeline))
        judged = [Judgement(row_id, fail(one.kind, str(one), owed=one.retryable)) for row_id, one in left.items()]
        made: list[Made] = []
        for item, one in zip(items, checked, strict=True):
            failure = labeller.failed.get(item.trace.id) if labeller else None
            if failure is None and one.result.reason in _NO_ANSWER:
                asked = scorer or model
                failure = asked.failed.get(item.trace.id) if asked else None
            if failure is None and checker and one.evidence is not None:
                failure = checker.failed.get(item.trace.id) or checker.failed.get(item.trace.problem_id)
            if failure is not None:
                judged.append(Judgement(item.trace.id, fail(failure.kind, str(failure), owed=True)))
                continue
            judgement, pruned = rows.of(item, one)
            judged.append(judgement)
            made += [] if pruned is None else [Made(pruned)]
        numbers = _numbers(results, checked, items if labeller else ())
        if asking := [one for one in (labeller, model, checker) if one is not None]:
            numbers |= spent([record for one in asking for record in one.records.values()], services.run_id)
        return Result(made=made, judged=judged, numbers=numbers)


@dataclass(frozen=True)
class _Rows:
    """Makes the rows of one stage. `inherited` are the columns that a pruned trace has of its parent's problem."""

    stage: StageSpec[Any]
    params: Any
    tokenizer: Callable[[str], int] | None
    inherited: Sequence[Column]

    def of(self, item: PruneItem, checked: Checked) -> tuple[Judgement, Trace | None]:
        """Return the decision about the parent, and the pruned trace where there is one."""
        result, evidence = checked.result, checked.evidence
        trace, counter = item.trace, LengthCounter.of(item.trace, self.tokenizer)
        name, granularity = self.stage.name, self.params.granularity
        derivation = derive(item, result, pruner=name, granularity=granularity, counter=counter)
        derived, found = derivation.model_dump_json(exclude_defaults=True), measures(item, result, counter)
        found |= {**evidence_measures(evidence), **result.measures}
        states = {} if checked.states is None else {STATES: checked.states}
        if derivation.edit is None:
            return Judgement(trace.id, KEEP, {DERIVATION.name: derived, **found, **states}), None
        lengths = derivation.edit.lengths
        share = lengths.pruned / lengths.parent if lengths.parent else 1.0
        # What is checked does not change the text.
        params = {key: value for key, value in pinned(self.params).items() if key not in ("check", "conclude")}
        made_by = {"parent": trace.id, "pruner": name, "with": params}
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
                "verdict": checked.verdict,
                "derivation": derived,
                "measures": {**kept, **found},
                "fields": {
                    **trace.fields,
                    **states,
                    CHECK: what_was_checked(evidence, searched=self.params.concludes),
                },
                "steps": (),
            }
        )
        return Judgement(trace.id, Decision(REPLACED, pruned.id)), pruned


def _since(before: str, now: str, changes: Mapping[str, str]) -> Iterator[str]:
    """Yield what changed after one version, up to another; versions that are no numbers have no order."""
    for version, words in changes.items():
        if before.isdecimal() and now.isdecimal() and int(before) < int(version) <= int(now):
            yield words


def _checked(params: Any, numbers: Mapping[str, float]) -> str:
    """Return a sentence that says what was checked of the pruned traces of a stage."""
    stated = f"the reasoning of {numbers.get('states_answer', 0):,.0f} of them states the right answer itself"
    pruned, asked = f"{numbers.get('pruned', 0):,.0f} traces were pruned, and {stated}", concluder(params)
    if asked is None and params.concludes:
        return f"{pruned}; the student {params.model} concluded to the right answer from each of them"
    if asked is None:
        return f"{pruned}; their answer texts were verified, but not whether their reasoning leads to the answer"
    checked, concluded, known, mixed = (
        f"{numbers.get(name, 0):,.0f}" for name in ("checked", "concluded", "concluded_known", "control_shuffled")
    )
    told = (
        f"{pruned}. Given the reasoning of {checked} candidates without the sentences that state the answer, the "
        f"student {asked.model} concluded to the right answer from {concluded}, in at least {asked.valid} of "
        f"{asked.samples} samples; from the others nothing was cut"
    )
    if "empty" in asked.controls:
        told += f". Without any reasoning it did so for {known} of these, for which the check proves nothing"
    if "shuffled" in asked.controls:
        told += f". With the sentences in random order it did so for {mixed} of {checked}"
    return told


def _problem_columns(stage: StageSpec[Any], pipeline: Pipeline) -> list[Column]:
    """Return the columns above the stage that are about the problem, not about the text of the trace."""
    above = pipeline.above(stage)
    return [one for other in above for one in stage_of(other).columns(other, pipeline) if one.about == "problem"]


async def _typed(items: Sequence[PruneItem], labeller: ServedModel) -> list[PruneItem]:
    """Return the items with their steps typed by a model."""
    traces = [(item.trace.id, item.trace.problem.question, item.trace.reasoning, item.steps) for item in items]
    typed = await relabel(traces, labeller)
    return [item.model_copy(update={"steps": steps}) for item, steps in zip(items, typed, strict=True)]


def _measured(stage: StageSpec[Any], pipeline: Pipeline) -> frozenset[str]:
    """Return the students under which every trace that reaches the stage was scored."""
    ways = []
    for source in map(pipeline.stage, stage.inputs):
        op = stage_of(source)
        # A trace that was written anew, such as a pruned one, has no scores yet.
        above = frozenset[str]() if op.makes is Kind.TRACES else _measured(source, pipeline)
        ways.append(op.scored_by(source) | above)
    return frozenset.intersection(*ways) if ways else frozenset()


async def _verified(services: Services, pairs: list[tuple[Problem, str]]) -> list[Verdict]:
    """Return the verdicts on answer texts to problems."""
    return await verify([VerifyTask(problem=problem, answer_text=text) for problem, text in pairs], services)


def _numbers(
    results: Sequence[PruneResult], checked: Sequence[Checked], typed: Sequence[PruneItem]
) -> dict[str, float]:
    """Count the results, the calls, the texts that the student concluded from, and the rules that typed steps."""
    found: Counter[str] = Counter()
    for one in checked:
        found["pruned" if one.result.reason is None else UNCHANGED + one.result.reason] += 1
        found["states_answer"] += one.result.reason is None and one.states == "right"
        if one.evidence is not None:
            found["checked"] += 1
            found["concluded"] += one.evidence.passed
            found["concluded_known"] += one.evidence.passed and one.evidence.known
            for name, votes in one.evidence.controls.items():
                found[f"control_{name}"] += votes.correct >= one.evidence.check.valid
    found["calls"] = sum(one.calls for one in results)
    if typed:
        rules = [step.rule for item in typed for step in item.steps]
        found["steps_typed_by_model"] = rules.count(MODEL_RULE)
        found["steps_typed_by_rules"] = len(rules) - rules.count(MODEL_RULE)
    return {name: float(count) for name, count in found.items()}


make = Prune
"""Returns the operation of one pruner."""
