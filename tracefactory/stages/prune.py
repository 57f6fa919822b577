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
from tracefactory.errors import Mistake
from tracefactory.fingerprint import digest
from tracefactory.models.base import Where
from tracefactory.models.local import LocalSpec
from tracefactory.op import OPS, STANDS, Host, Inputs, Rows, ShardOp, ShardResult
from tracefactory.pruners import (
    PRUNERS,
    PruneItem,
    PruneResult,
    Ruler,
    Tools,
    derive,
    measures,
    reverify,
)
from tracefactory.schema import Dropped, Problem, Thinking, Trace, Verdict
from tracefactory.stages.asking import ServedModel
from tracefactory.stages.prune_params import (
    ASKING,
    StageParams,
    as_asking,
    as_pruner,
    as_stage,
    mistakes,
    params_of,
    prompts_of,
)
from tracefactory.stages.sample import spent
from tracefactory.steps import VERSION as STEPS_VERSION
from tracefactory.store import dropped_row
from tracefactory.students.tokens import token_counter
from tracefactory.verifiers import VERIFIERS, VerifyTask
from tracefactory.worker import Worker

_ASKED_IN_VAIN = ("student_error", "writer_error")


class Prune(ShardOp):
    """One registered pruner as an operation. Only a request that may yet succeed makes an error row, not a fallback."""

    verb, version = "prune", "1"
    takes, gives = Rows.TRACES, Rows.TRACES
    many_inputs = True

    def __init__(self, name: str) -> None:
        # One operation per registered pruner: what is a class attribute elsewhere is decided here.
        self.name = name  # type: ignore[misc]
        self.Params = params_of(name)  # type: ignore[misc]
        self.host = Host.MODEL if name in ASKING else Host.CPU  # type: ignore[misc]

    def identity(self, stage: StageConfig, pipeline: Pipeline) -> dict[str, Any]:
        where = Where(root=pipeline.project.root)
        return {
            "pruner": PRUNERS.get(self.name).version,
            "steps": STEPS_VERSION,
            "verifiers": {name: VERIFIERS.get(name).version for name in VERIFIERS},
            "models": {name: pipeline.models[name].identity(where) for name in sorted(set(stage.model_names))},
            "prompts": {key: pipeline.prompts[name].digest for key, name in prompts_of(stage.params).items()},
        }

    def check(self, stage: StageConfig, pipeline: Pipeline) -> list[Mistake]:
        return list(mistakes(stage.params, pipeline))

    async def run(self, stage: StageConfig, inputs: Inputs, worker: Worker) -> ShardResult:
        params, asking = as_stage(stage.params), as_asking(stage.params)
        traces = inputs.traces()
        items = [PruneItem.of(trace, params.granularity) for trace in traces]
        model = None if asking is None else ServedModel(asking, stage.id, worker)
        verify = _verifier(worker)
        results = await as_pruner(stage.params).prune(items, Tools(verify=verify, student=model, writer=model))
        checked = await reverify(items, results, verify)
        making = _Making(stage, params, await _tokenizer(params, worker))
        kept: list[Trace] = []
        dropped: list[Dropped] = []
        for item, one in zip(items, checked, strict=True):
            failed = model.failed.get(item.trace.id) if model and one.result.reason in _ASKED_IN_VAIN else None
            if failed is not None:
                dropped.append(dropped_row(item.trace, stage.id, failed.kind, str(failed), error=True))
            else:
                kept.append(making.row(item, one.result, one.verdict))
        return ShardResult(
            rows_in=len(traces),
            kept=kept,
            dropped=dropped,
            retryable=len(dropped),
            numbers={**_outcomes(results, checked_results=[one.result for one in checked]), **_paid(model, worker)},
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


def _verifier(worker: Worker) -> Callable[[list[tuple[Problem, str]]], Any]:
    async def verify(pairs: list[tuple[Problem, str]]) -> list[Verdict]:
        tasks = [VerifyTask(problem=problem, answer_text=text) for problem, text in pairs]
        return await worker.verifiers.verify(tasks)

    return verify


async def _tokenizer(params: StageParams, worker: Worker) -> Callable[[str], int] | None:
    """Return what counts in the student's tokens; a tokenizer takes seconds to read, so other shards go on."""
    if params.student is None:
        return None
    spec = worker.pipeline.models[params.student]
    assert isinstance(spec, LocalSpec)
    return await asyncio.to_thread(token_counter, spec.weights(worker.where))


def _outcomes(results: Sequence[PruneResult], checked_results: Sequence[PruneResult]) -> Mapping[str, float]:
    """Count what became of the rows, and the questions that were asked."""
    found: Counter[str] = Counter()
    for one in checked_results:
        found["pruned" if one.reason is None else STANDS + one.reason] += 1
    found["calls"] = sum(one.calls for one in results)
    return {name: float(count) for name, count in found.items()}


def _paid(model: ServedModel | None, worker: Worker) -> dict[str, float]:
    if model is None:
        return {}
    records = list(model.records.values())
    mine = [record for record in records if record["run"] == worker.setup.run_id]
    return spent(records) | {f"paid_{name}": number for name, number in spent(mine).items()}


for _name in PRUNERS:
    OPS.register(f"prune:{_name}")(Prune(_name))
