"""What a run would do: every stage's key, whether it is done and if not why, and what is still to pay."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from tracefactory.config import Pipeline, StageConfig
from tracefactory.core.files import read_json
from tracefactory.core.fingerprint import digest
from tracefactory.core.schema import Frozen, Problem
from tracefactory.stages.sample.chat import SampleOp, SampleParams
from tracefactory.stages.source.problems import SourceOp
from tracefactory.store.requests import RequestStore
from tracefactory.store.stages import StageFolder, StageRecord


class State(StrEnum):
    """CACHED: nothing to do. PARTIAL: begun, or some of its requests are paid for. NEW: nothing is there."""

    CACHED = "cached"
    PARTIAL = "partial"
    NEW = "new"


class Identity(Frozen):
    """A stage's key and what it was made from."""

    key: str
    content: Mapping[str, Any]


class ToPay(Frozen):
    """What a stage that asks a model still needs. Token counts are upper bounds, cost is US dollars by declared prices.

    `bound` says that `requests` is the most it can take, of all its rows: what it asks depends on the answers, so what
    is paid for already shows only as it asks. `expected_*` scales what completions of the same stage took so far; it is
    None where nothing is known yet.
    """

    requests: int
    paid: int
    bound: bool = False
    tokens_at_most: int
    cost_at_most: float
    tokens_expected: int | None = None
    cost_expected: float | None = None


class PlannedStage(Frozen):
    id: str
    op: str
    key: str
    state: State
    why: str
    to_pay: ToPay | None = None
    unknown: bool = False  # what it would pay for depends on rows that only a run reads or makes


class Plan(Frozen):
    pipeline: str
    version: str
    stages: tuple[PlannedStage, ...]

    @property
    def requests(self) -> int:
        """The requests to pay: at most so many, where a stage has only a bound."""
        return sum(stage.to_pay.requests for stage in self.stages if stage.to_pay)

    @property
    def bound(self) -> bool:
        return any(stage.to_pay.bound for stage in self.stages if stage.to_pay)


def identities(pipeline: Pipeline) -> dict[str, Identity]:
    """Return the key of every stage: a digest of operation, parameters, what they use, and the keys of the inputs."""
    found: dict[str, Identity] = {}
    for stage in pipeline.stages:
        content = {
            "id": stage.id,
            "op": f"{stage.verb}:{stage.name}",
            "version": stage.op.version,
            "with": stage.params.model_dump(mode="json", by_alias=True),
            "uses": stage.op.identity(stage, pipeline),
            "inputs": {source: found[source].key for source in stage.inputs},
        }
        found[stage.id] = Identity(key=digest(content), content=content)
    return found


def is_current(folder: StageFolder, inputs: Mapping[str, StageRecord], stage: StageConfig, pipeline: Pipeline) -> bool:
    """Tell whether a stage is done, from inputs as they are now, with nothing left to try again."""
    record = folder.record()
    return (
        record is not None
        and not record.tally.retryable
        and record.inputs == {source: one.digest for source, one in inputs.items()}
        and stage.op.is_intact(stage, pipeline)
    )


@dataclass
class _Planner:
    pipeline: Pipeline
    root: Path
    identities: Mapping[str, Identity]
    store: RequestStore

    def folder(self, stage_id: str) -> StageFolder:
        stage = self.pipeline.stage(stage_id)
        return StageFolder(self.root, stage_id, self.identities[stage_id].key, stage.op.gives)

    def stage(self, stage: StageConfig, done: dict[str, StageRecord]) -> PlannedStage:
        folder = self.folder(stage.id)
        inputs_done = all(source in done for source in stage.inputs)
        inputs = {source: done[source] for source in stage.inputs if source in done}
        record = folder.record()
        if inputs_done and record is not None and is_current(folder, inputs, stage, self.pipeline):
            done[stage.id] = record
            return self._planned(stage, State.CACHED, f"{record.tally.kept} rows")
        to_pay, unknown = self._to_pay(stage, inputs_done)
        state = State.PARTIAL if record or folder.parts() or (to_pay and to_pay.paid) else State.NEW
        return self._planned(stage, state, self._why(stage, folder, record, done), to_pay, unknown)

    def _planned(
        self, stage: StageConfig, state: State, why: str, to_pay: ToPay | None = None, unknown: bool = False
    ) -> PlannedStage:
        return PlannedStage(
            id=stage.id,
            op=f"{stage.verb}:{stage.name}",
            key=self.identities[stage.id].key,
            state=state,
            why=why,
            to_pay=to_pay,
            unknown=unknown,
        )

    def _why(
        self, stage: StageConfig, folder: StageFolder, record: StageRecord | None, done: Mapping[str, StageRecord]
    ) -> str:
        """Say in the words of the YAML why a stage has to run."""
        waiting = [source for source in stage.inputs if source not in done]
        if record is not None and record.tally.retryable:
            return f"{record.tally.retryable} failed rows to try again"
        if record is not None:
            return f"input {', '.join(waiting)} is not complete" if waiting else "its inputs or outputs have changed"
        if parts := folder.parts():
            return f"interrupted after {len(parts)} shards"
        before = self._latest_other(stage.id)
        if before is None:
            return "never run"
        return "; ".join(changes(before, self.identities[stage.id].content)) or "changed"

    def _latest_other(self, stage_id: str) -> Mapping[str, Any] | None:
        """Return the newest other identity that this stage id had."""
        mine = self.folder(stage_id).path.name
        files = [
            path
            for path in (self.root / "stages").glob(f"{stage_id}-{'[0-9a-f]' * 16}/identity.json")
            if path.parent.name != mine
        ]
        newest = max(files, key=lambda path: path.stat().st_mtime, default=None)
        return None if newest is None else read_json(newest)

    def _to_pay(self, stage: StageConfig, inputs_done: bool) -> tuple[ToPay | None, bool]:
        if not isinstance(stage.op, SampleOp):
            bound = self._bound(stage) if inputs_done else None
            return bound, bound is None and stage.op.asks(stage) is not None
        problems = self._problems(stage)
        if problems is None:
            return None, True
        assert isinstance(stage.params, SampleParams)
        spec = self.pipeline.models[stage.op.payer(stage)]
        draws = stage.op.draws(stage, self.pipeline, problems)
        present = self.store.present(draw.request.key for draw in draws)
        missing = [draw for draw in draws if draw.request.key not in present]
        # Without the model's tokenizer a prompt is bounded by its bytes: no tokenizer makes more tokens than bytes.
        prompt = sum(len(str(m["content"]).encode()) for draw in missing for m in draw.request.messages)
        most = len(missing) * stage.params.max_tokens
        seen = [record["completion"] for record in self.store.get(list(present)[:256]).values()]
        expected = expected_cost = None
        if seen:
            each_in = sum(one["prompt_tokens"] for one in seen) / len(seen)
            each_out = sum(one["completion_tokens"] for one in seen) / len(seen)
            expected = round(len(missing) * (each_in + each_out))
            expected_cost = len(missing) * (each_in * spec.price_in + each_out * spec.price_out) / 1e6
        to_pay = ToPay(
            requests=len(missing),
            paid=len(present),
            tokens_at_most=prompt + most,
            cost_at_most=(prompt * spec.price_in + most * spec.price_out) / 1e6,
            tokens_expected=expected,
            cost_expected=expected_cost,
        )
        return to_pay, False

    def _bound(self, stage: StageConfig) -> ToPay | None:
        """Return what a stage asks at most about the rows its inputs gave, None where nobody can say."""
        rows = [row for source in stage.inputs for row in self.folder(source).read_all()]
        by_model = stage.op.at_most(stage, self.pipeline, rows)
        if not by_model:
            return None
        prices = {name: self.pipeline.models[name] for name in by_model}
        return ToPay(
            requests=sum(one.requests for one in by_model.values()),
            paid=0,
            bound=True,
            tokens_at_most=sum(one.prompt_tokens + one.completion_tokens for one in by_model.values()),
            cost_at_most=sum(
                (one.prompt_tokens * prices[name].price_in + one.completion_tokens * prices[name].price_out) / 1e6
                for name, one in by_model.items()
            ),
        )

    def _problems(self, stage: StageConfig) -> list[Problem] | None:
        """Return the problems a stage would sample, or None when only a run can read them."""
        problems: list[Problem] = []
        for source in stage.inputs:
            folder, origin = self.folder(source), self.pipeline.stage(source)
            if folder.record() is not None:
                problems += [row for row in folder.read_all() if isinstance(row, Problem)]
            elif isinstance(origin.op, SourceOp) and origin.op.source.offline:
                problems += origin.op.problems(origin, self.pipeline)[0]
            else:
                return None
        return problems


def make_plan(pipeline: Pipeline, root: Path) -> Plan:
    """Compare a pipeline with the store. Reads local sources; sends nothing."""
    planner = _Planner(pipeline, root, identities(pipeline), RequestStore(root))
    done: dict[str, StageRecord] = {}
    stages = tuple(planner.stage(stage, done) for stage in pipeline.stages)
    return Plan(pipeline=pipeline.name, version=pipeline.version, stages=stages)


def changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Say what differs between two identities of one stage: `samples: 4 -> 8`, `input problems changed`."""
    said = [f"input {name} changed" for name in after["inputs"] if before["inputs"].get(name) != after["inputs"][name]]
    said += [f"input {name} removed" for name in before["inputs"] if name not in after["inputs"]]
    if (before["op"], before["version"]) != (after["op"], after["version"]):
        said.append(f"{before['op']} {before['version']} -> {after['op']} {after['version']}")
    for part in ("with", "uses"):
        old, new = _flat(before[part]), _flat(after[part])
        for name in sorted({*old, *new}):
            if old.get(name) != new.get(name):
                said.append(f"{name}: {_short(old.get(name))} -> {_short(new.get(name))}")
    return said


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(value, Mapping) and value:
        return {
            k: v for name, one in value.items() for k, v in _flat(one, f"{prefix}.{name}" if prefix else name).items()
        }
    if isinstance(value, (list, tuple)) and any(isinstance(one, (Mapping, list, tuple)) for one in value):
        return {k: v for i, one in enumerate(value) for k, v in _flat(one, f"{prefix}[{i}]").items()}
    return {prefix: value}


def _short(value: Any) -> str:
    text = "(none)" if value is None else str(value)
    return text[:12] if len(text) == 64 and all(c in "0123456789abcdef" for c in text) else text[:60]
