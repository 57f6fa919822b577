"""The plan of a run: for every stage its key, its state with the reason, and the requests to pay."""

from __future__ import annotations

import os
from collections.abc import Collection, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import chain, islice
from pathlib import Path
from typing import Any

from pydantic import Field, computed_field

from tracefactory.core.environment import Environment
from tracefactory.core.errors import Mistake, UserError
from tracefactory.core.gpus import gpus_of, phases
from tracefactory.core.pipeline import Pipeline, StageSpec
from tracefactory.core.rows import Frozen, Kind
from tracefactory.core.spans import Span
from tracefactory.core.stage import AtMost, Batch, Wanted, Work, kinds_of, stage_of
from tracefactory.core.upgrade import Upgrade
from tracefactory.engine.costs import Due, GpuTime, PlannedCap, planned_caps, total
from tracefactory.engine.former import Former, formers, upgrade_of
from tracefactory.engine.identity import Identity, identities
from tracefactory.engine.retry import FailedRow, failed_rows
from tracefactory.engine.shards import combined_inputs
from tracefactory.engine.spending import prices_of
from tracefactory.engine.stored import usable_records
from tracefactory.store.damage import Damage
from tracefactory.store.requests import RequestStore
from tracefactory.store.rows import StageRows, stored_rows
from tracefactory.store.stages import OWED, StageFolder, StageRecord, to_retry

_BATCH_PROBLEMS = 4096
_SAMPLE = 256  # stored completions used to estimate the tokens of missing ones


class State(StrEnum):
    """CACHED: nothing to do. PARTIAL: started, or some of its requests are paid. NEW: nothing is stored."""

    CACHED = "cached"
    PARTIAL = "partial"
    NEW = "new"


class ToPay(Due):
    """The requests that a stage still has to pay, in all and in `models` by model; see `Due` for the numbers.

    With `bound`, `requests` is an upper bound for all rows of the stage: its requests depend on answers, so it is not
    known which are already paid.
    """

    paid: int
    bound: bool = False
    models: Mapping[str, Due] = Field(default_factory=dict)

    @classmethod
    def summed(cls, models: Mapping[str, Due], paid: int, *, bound: bool = False) -> ToPay:
        """Return the sum over models; a cost is unknown where one of them is."""
        dues = list(models.values())
        numbers = {name: total(getattr(due, name) for due in dues) for name in Due.model_fields}
        return cls(paid=paid, bound=bound, models=models, **numbers)


class PlannedStage(Frozen):
    """One stage of a plan. `unknown` means that its requests depend on rows that do not exist before the run.

    `upgrade` says what other versions of code change about the rows that the stage has stored, None where none changed.
    """

    id: str
    op: str
    key: str
    state: State
    why: str
    to_pay: ToPay | None = None
    unknown: bool = False
    upgrade: Upgrade | None = None


class Plan(Frozen):
    """The plan of a run. `rebuilt` is the number of stages stored by an earlier version in an unsupported layout.

    `damage` are sentences about damaged files that planning has met; `tracefactory fsck` reads everything. `caps` are
    those of the budget, with what counts against them, `gpus` the GPU-hours to pay, and `phases` the stages that have
    their GPUs at the same time, with the GPUs by model: as many phases as `run: gpus`, or else this machine, demands.
    """

    pipeline: str
    version: str
    stages: tuple[PlannedStage, ...]
    rebuilt: int = 0
    damage: tuple[str, ...] = ()
    caps: tuple[PlannedCap, ...] = ()
    gpus: tuple[GpuTime, ...] = ()
    phases: tuple[str, ...] = ()

    @computed_field  # type: ignore[prop-decorator]  # mypy knows no decorated properties
    @property
    def requests(self) -> int:
        """The number of requests to pay, an upper bound if a stage has only a bound."""
        return sum(stage.to_pay.requests for stage in self.stages if stage.to_pay)

    @property
    def bound(self) -> bool:
        return any(stage.to_pay.bound for stage in self.stages if stage.to_pay)

    @property
    def may_pay(self) -> bool:
        """Whether the run may send paid requests."""
        return self.requests > 0 or any(stage.unknown for stage in self.stages)


def retry_of(pipeline: Pipeline, kind: str | None) -> str:
    """Return which failed rows a run tries again, see `store.stages.to_retry`.

    Args:
        pipeline: the pipeline; after a release without its owed rows, they are left alone.
        kind: the kind of failure that the user names, None for all owed rows.

    Raises:
        UserError: when rows of a published version would be tried again.
    """
    settled = [stage for stage in pipeline.stages if stage_of(stage).is_settled(stage, pipeline)]
    if kind is None:
        return "" if settled else OWED
    if settled:
        message = f"version {pipeline.version} is published without its failed rows, and is never changed"
        raise UserError(Mistake(message, settled[0].file, settled[0].line, "raise `version:` to publish with them"))
    return kind


def is_current(folder: StageFolder, inputs: Mapping[str, StageRecord], intact: bool, retry: str) -> bool:
    """Return whether a stage is finished with its current inputs and outputs `intact`, with no rows to `retry`."""
    record = folder.record()
    return (
        record is not None
        and folder.identity() is not None
        and not to_retry(record.tally, retry)
        and record.inputs == {source: one.digest for source, one in inputs.items()}
        and intact
    )


def make_plan(
    pipeline: Pipeline, root: Path, *, count: bool = True, compare: bool = False, retry_kind: str | None = None
) -> Plan:
    """Compare a pipeline with the store. Reads local sources and sends no requests.

    Without `count`, the requests to pay are not counted, because that requires reading all rows. With `compare`, stored
    verdicts are compared with those of verifiers that have changed since, which takes a few seconds for each stage.
    `retry_kind` is the kind of failure to try again; by default, all owed rows are tried again.
    """
    retry, store = retry_of(pipeline, retry_kind), RequestStore(root)
    planner = _Planner(pipeline, root, identities(pipeline), kinds_of(pipeline), store, count, compare, retry)
    done: dict[str, StageRecord] = {}
    stages = tuple(planner.stage(stage, done) for stage in pipeline.stages)
    rebuilt = sum(planner.former_layout(stage) for stage in pipeline.stages if stage.id not in done)
    planner.store.close()
    dues = [stage.to_pay.models for stage in stages if stage.to_pay is not None]
    whole = not any(stage.unknown for stage in stages)
    caps, gpus = planned_caps(pipeline, root, dues, planner.damage.append, whole=whole) if count else ((), ())
    to_run = {stage.id for stage in stages if stage.state is not State.CACHED}
    damage = tuple(dict.fromkeys(map(str, (*planner.damage, *planner.store.damage))))
    return Plan(
        pipeline=pipeline.name,
        version=pipeline.version,
        stages=stages,
        rebuilt=rebuilt,
        damage=damage,
        caps=caps,
        gpus=gpus,
        phases=_phases(pipeline, to_run),
    )


def _phases(pipeline: Pipeline, to_run: Collection[str]) -> tuple[str, ...]:
    """Return the stages to run that have their GPUs at the same time, () where none needs a GPU."""
    if not any(gpus_of(stage, pipeline) for stage in pipeline.stages if stage.id in to_run):
        return ()
    gpus = pipeline.run.gpus
    if gpus is None and pipeline.run.ray_address is None:
        from tracefactory.serving.vllm.placement import visible_gpus  # starts nvidia-smi

        gpus = len(visible_gpus(os.environ)) or None
    return tuple(map(str, phases(pipeline, to_run, gpus)))


def asked_models(pipeline: Pipeline, plan: Plan) -> set[str]:
    """Return the models that stages name which are not finished."""
    to_run = {stage.id for stage in plan.stages if stage.state is not State.CACHED}
    return {name for stage in pipeline.stages if stage.id in to_run for name in stage.model_names}


@dataclass
class _Planner:
    pipeline: Pipeline
    root: Path
    identities: Mapping[str, Identity]
    kinds: Mapping[str, Kind]
    store: RequestStore
    count: bool
    compare: bool
    retry: str
    damage: list[Damage] = field(default_factory=list)

    def folder(self, stage_id: str) -> StageFolder:
        return StageFolder(self.root, stage_id, self.identities[stage_id].key)

    def stage(self, stage: StageSpec[Any], done: dict[str, StageRecord]) -> PlannedStage:
        """Plan one stage; records of finished stages are collected in `done`."""
        op, folder = stage_of(stage), self.folder(stage.id)
        inputs = {source: done[source] for source in stage.inputs if source in done}
        complete = len(inputs) == len(stage.inputs)
        record = folder.record()
        folder.identity()
        self.damage += folder.damage
        if (
            record is not None
            and complete
            and is_current(folder, inputs, op.is_intact(stage, self.pipeline), self.retry)
        ):
            done[stage.id] = record
            return self._planned(stage, State.CACHED, f"{record.tally.kept:,} rows")
        is_retry = record is not None and record.inputs == {source: one.digest for source, one in inputs.items()}
        to_pay, unknown = self._to_pay(stage, complete, is_retry=is_retry)
        begun = record is not None or folder.finished_shards() or (to_pay is not None and to_pay.paid)
        former = self._formers(stage.id)
        why = self._why(stage, folder, record, done, former)
        planned = self._planned(stage, State.PARTIAL if begun else State.NEW, why, to_pay, unknown)
        if record is not None:  # its rows are from this version
            return planned
        now = self.identities[stage.id].stored()
        news = upgrade_of(stage, self.pipeline, self.root, now, former, compare=self.compare)
        return planned.model_copy(update={"upgrade": news})

    def former_layout(self, stage: StageSpec[Any]) -> bool:
        """Return whether a version of this package with other keys has stored this stage."""
        return any(one.is_older_layout for one in self._formers(stage.id))

    def _planned(
        self, stage: StageSpec[Any], state: State, why: str, to_pay: ToPay | None = None, unknown: bool = False
    ) -> PlannedStage:
        key = self.identities[stage.id].key
        return PlannedStage(id=stage.id, op=stage.op, key=key, state=state, why=why, to_pay=to_pay, unknown=unknown)

    def _why(
        self,
        stage: StageSpec[Any],
        folder: StageFolder,
        record: StageRecord | None,
        done: Mapping[str, StageRecord],
        former: Sequence[Former],
    ) -> str:
        """Return the reason why a stage has to run, in the terms of the YAML file."""
        if folder.damage:
            return "; ".join(f"{one.path.name} is damaged ({one.place}: {one.what})" for one in folder.damage)
        waiting = [source for source in stage.inputs if source not in done]
        if record is not None and (failed := to_retry(record.tally, self.retry)):
            return f"{failed} failed rows to retry"
        if record is not None:
            return f"input {', '.join(waiting)} is not complete" if waiting else "its inputs or outputs have changed"
        if shards := folder.finished_shards():
            return f"interrupted after {len(shards)} shards"
        if not former:
            return "never run"
        if former[0].is_older_layout:
            return "stored by an earlier version: rebuilt from stored completions"
        return "; ".join(changes(former[0].identity, self.identities[stage.id].stored())) or "changed"

    def _formers(self, stage_id: str) -> list[Former]:
        own = self.folder(stage_id).path.name
        return formers(self.root, stage_id, self.identities[stage_id].stored(), own, self.damage.append)

    def _to_pay(self, stage: StageSpec[Any], complete: bool, *, is_retry: bool) -> tuple[ToPay | None, bool]:
        """Return the requests that a stage still has to pay, and whether they are unknown before a run.

        With `is_retry`, the stage is finished, and only its failed rows are asked about again.
        """
        op, folder = stage_of(stage), self.folder(stage.id)
        model = op.asks(stage, self.pipeline)
        if model is None or not self.count:
            return None, False
        batches = self._batches(stage, complete)
        if batches is None:
            return None, True
        failed = [row for shard in folder.finished_shards() for row in failed_rows(folder, *shard)]
        first = next(batches, Batch())
        batches = chain([first], batches)
        if op.wanted(stage, self.pipeline, first) is not None:
            left = {row.request_key for row in failed if not row.is_retried(self.retry)}
            return self._count_requests(stage, model, batches, left), False
        if is_retry:
            retried = [row for row in failed if row.is_retried(self.retry)]
            batches = (_about(retried, batch, judged=op.judges) for batch in batches)
        bound = self._bound(stage, batches)
        return bound, bound is None

    def _count_requests(
        self, stage: StageSpec[Any], model: str, batches: Iterable[Batch], left: Container[str]
    ) -> ToPay:
        """Count the requests of a stage whose requests are determined by its rows; those `left` are not sent again."""
        op, spec = stage_of(stage), self.pipeline.models[model]
        missing = paid = prompt_bytes = longest = 0
        seen: list[str] = []
        for batch in batches:
            wanted = {one.key: one for one in op.wanted(stage, self.pipeline, batch) or ()}
            present = self._present(wanted)
            paid += len(present)
            # Bytes are an upper bound on the tokens of a prompt for every tokenizer.
            sizes = [one.prompt_bytes for key, one in wanted.items() if key not in present and key not in left]
            missing += len(sizes)
            prompt_bytes, longest = prompt_bytes + sum(sizes), max(longest, *sizes, 0)
            seen += list(present.values())[: _SAMPLE - len(seen)]
        records = [record["completion"] for record in usable_records(self.store.get(seen)).values()]
        most = AtMost(missing, prompt_bytes, missing * stage.params.max_tokens)
        price = spec.price_used(Environment(root=self.pipeline.project.root), longest)
        return ToPay.summed({model: Due.of(most, price, records)}, paid)

    def _present(self, wanted: Mapping[str, Wanted]) -> dict[str, str]:
        """Return the keys with a stored completion, each with the key that it is stored under."""
        present = {key: key for key in self.store.present(wanted)}
        if self.store.has_v1_keys:
            older = {one.key_v1(): key for key, one in wanted.items() if key not in present}
            present |= {older[key_v1]: key_v1 for key_v1 in self.store.present(older)}
        return present

    def _bound(self, stage: StageSpec[Any], batches: Iterable[Batch]) -> ToPay | None:
        """Return an upper bound on the requests for the rows of a stage, None when it has no bound."""
        op = stage_of(stage)
        by_model: dict[str, AtMost] = {}
        for batch in batches:
            for name, most in op.at_most(stage, self.pipeline, batch).items():
                by_model[name] = by_model.get(name, AtMost()) + most
        if not by_model:
            return None
        prices = prices_of(self.pipeline)
        return ToPay.summed({name: Due.of(most, prices[name]) for name, most in by_model.items()}, 0, bound=True)

    def _batches(self, stage: StageSpec[Any], complete: bool) -> Iterator[Batch] | None:
        """Return the input rows of a stage, None when only a run can make them."""
        above = [self.folder(one.id) for one in self.pipeline.above(stage)]
        if all(one.record() is not None and one.identity() is not None for one in above):
            op = stage_of(stage)
            inputs = tuple(stored_rows(self.root, one, self.identities[one].key) for one in sorted(stage.inputs))
            rows = StageRows(self.folder(stage.id), 1, self.kinds[stage.id], op.makes, op.judges, inputs)
            return combined_inputs(rows).batches(Span.all(), _BATCH_PROBLEMS)
        origins = [self.pipeline.stage(source) for source in stage.inputs]
        for origin in origins:
            op = stage_of(origin)
            if op.work(origin, self.pipeline) is not Work.SOURCE or op.makes is not Kind.PROBLEMS or not op.offline:
                return None
        return self._problems(origins)

    def _problems(self, sources: Sequence[StageSpec[Any]]) -> Iterator[Batch]:
        """Yield the problems of sources that can be read without the network."""
        environment = Environment(root=self.pipeline.project.root)
        made = (one for source in sources for one in stage_of(source).read(source, self.pipeline, environment))
        problems = (one.row for one in made if one.decision.keep)
        while batch := list(islice(problems, _BATCH_PROBLEMS)):
            yield Batch(problems=batch)


def _about(failed: Sequence[FailedRow], batch: Batch, *, judged: bool) -> Batch:
    """Return the rows of a batch that failed, or whose problems have failed rows that the stage made."""
    ids = {row.id if judged else row.problem_id for row in failed}
    problems = [one for one in batch.problems if one.id in ids]
    return Batch(problems, [one for one in batch.traces if (one.id if judged else one.problem_id) in ids])


def changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Return the differences between two identities of a stage: `samples: 4 -> 8`, `input problems changed`."""
    found = [f"input {name} changed" for name in after["inputs"] if before["inputs"].get(name) != after["inputs"][name]]
    found += [f"input {name} removed" for name in before["inputs"] if name not in after["inputs"]]
    if (before["op"], before["version"]) != (after["op"], after["version"]):
        found.append(f"{before['op']} {before['version']} -> {after['op']} {after['version']}")
    for part in ("parameters", "uses"):
        old, new = _flat(before[part]), _flat(after[part])
        for name in sorted({*old, *new}):
            if old.get(name) != new.get(name):
                found.append(f"{name}: {_short(old.get(name))} -> {_short(new.get(name))}")
    return found


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(value, Mapping):
        return {
            k: v for name, one in value.items() for k, v in _flat(one, f"{prefix}.{name}" if prefix else name).items()
        }
    if isinstance(value, (list, tuple)) and any(isinstance(one, (Mapping, list, tuple)) for one in value):
        return {k: v for i, one in enumerate(value) for k, v in _flat(one, f"{prefix}[{i}]").items()}
    return {prefix: value}


def _short(value: Any) -> str:
    text = "(none)" if value is None else str(value)
    return text[:12] if len(text) == 64 and all(c in "0123456789abcdef" for c in text) else text[:60]
