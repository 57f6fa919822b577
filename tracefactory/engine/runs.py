"""The records of each run: `runs/<time>-<name>/` with the resolved pipeline, the plan, a log and the outcome."""

from __future__ import annotations

import os
import re
import socket
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, Field, ValidationError

from tracefactory.core.errors import BudgetReached, Interrupted, RunError, RunStopped, UserError, nearest
from tracefactory.core.files import write_json, write_text
from tracefactory.core.rows import Frozen, Kind
from tracefactory.core.yamlfile import to_yaml
from tracefactory.engine.plan import Plan, State
from tracefactory.engine.reporting.log import LOG, RunLog
from tracefactory.store.damage import Damage
from tracefactory.store.leases import RunLock, has_workers
from tracefactory.store.records import read_record, write_record
from tracefactory.store.rows import StageRows, stored_rows
from tracefactory.store.spend import Amount, spent_by
from tracefactory.store.stages import StageFolder, Tally

PAID = ("requests", "prompt_tokens", "completion_tokens", "cost", "unpriced")
"""What a run pays for a stage; a shard counts it as `paid_...`."""
RUN = re.compile(r"\d{8}-\d{6}-\d{6}-(.+)")
"""The name of a run: the time of its begin in UTC, and its pipeline."""


class End(StrEnum):
    """How a run has ended. STOPPED: it could not go on for a reason outside of it, such as no credit.

    RUNNING and KILLED are runs that have left no outcome: their processes are alive, or not.
    """

    FINISHED = "finished"
    CAP = "cap"
    STOPPED = "stopped"
    INTERRUPTED = "interrupted"
    FAILED = "failed"
    RUNNING = "running"
    KILLED = "killed"

    @classmethod
    def of(cls, error: BaseException | None) -> End:
        """Return the end of a run that raised `error`."""
        if error is None:
            return cls.FINISHED
        kinds = {BudgetReached: cls.CAP, RunStopped: cls.STOPPED, Exception: cls.FAILED}
        if isinstance(error, Interrupted):
            return cls.INTERRUPTED
        return next((end for kind, end in kinds.items() if isinstance(error, kind)), cls.INTERRUPTED)

    @property
    def exit_status(self) -> int:
        """The exit status of a command whose run has ended so, except for mistakes of the user; 0 while it goes on."""
        ended = {End.FINISHED: 0, End.RUNNING: 0, End.CAP: 3, End.INTERRUPTED: 130, End.KILLED: 137}
        return ended.get(self, 1)


def exit_status(error: BaseException | None) -> int:
    """Return the exit status of the command whose run has raised `error`."""
    return 2 if isinstance(error, UserError) else End.of(error).exit_status


class StageOutcome(Frozen):
    """One stage of a run: its key, its funnel, and what this run paid.

    A stage that is not `done` has no digest, and the funnel of its finished shards. A `failed` one has ended the run.
    """

    id: str
    op: str
    key: str
    gives: Kind
    digest: str
    cached: bool
    done: bool = True
    failed: bool = False
    tally: Tally
    paid: Mapping[str, float] = Field(default_factory=dict)

    def rows(self, root: Path) -> StageRows:
        """Return the rows of the stage as the run left them."""
        return stored_rows(root, self.id, self.key)


class SpendLine(Frozen):
    """What a run spent on one model. `cost` is in US dollars, without the `unpriced` requests, whose price is unknown.

    Attempts whose answer was lost count at their worst case.
    """

    model: str
    price: str
    requests: int
    prompt_tokens: int
    completion_tokens: int
    cost: float
    unpriced: int = 0
    gpu_hours: float = 0.0

    @classmethod
    def of(cls, model: str, amount: Amount, price: str = "") -> SpendLine:
        """Return the line of a model; `price` says what its completions cost."""
        return cls(
            model=model,
            price=price,
            requests=amount.requests,
            prompt_tokens=amount.prompt_tokens,
            completion_tokens=amount.completion_tokens,
            cost=amount.usd,
            unpriced=amount.unpriced,
            gpu_hours=amount.gpu_hours,
        )


class RunOutcome(Frozen):
    """A run that has ended. Times are Unix seconds; `spend` is by model, in runs since version 0.3.

    `reason` is the sentence with which an unfinished run ended, `exit_status` that of its command, in runs since
    version 0.3.
    """

    run: str
    pipeline: str
    version: str
    started: float
    finished: float
    stages: tuple[StageOutcome, ...]
    spend: tuple[SpendLine, ...] = ()
    state: End = End.FINISHED
    reason: str = ""
    exit_status: int | None = None


class RunLine(Frozen):
    """One run in a list: `state` is an `End`, or `damaged` when its record cannot be read.

    `requests`, and `cost` in US dollars, are what it spent; None where that is not known.
    """

    run: str
    state: str
    requests: int | None = None
    cost: float | None = None
    unpriced: int = 0
    reason: str = ""


class _PlannedStage(Frozen):
    """What the plan of a run says of a stage, as far as it is needed to find its shards."""

    model_config = ConfigDict(extra="ignore")

    id: str
    op: str
    key: str
    state: State


class _PlannedRun(Frozen):
    """The plan of a run, as any version has stored it."""

    model_config = ConfigDict(extra="ignore")

    pipeline: str
    version: str
    stages: tuple[_PlannedStage, ...]


class RunFolder:
    """The folder of one run, with a lock while the run is alive.

    Args:
        root: the folder of the project's state.
        pipeline: the name of the pipeline.
        secrets: values that must not be in the log, by the name of their environment variable.
    """

    def __init__(self, root: Path, pipeline: str, secrets: Mapping[str, str] | None = None) -> None:
        stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S-%f")
        self.id = f"{stamp}-{pipeline}"
        self.path = root / "runs" / self.id
        self._lock = RunLock(root, self.id)
        self._log = RunLog(self.path, self.id, secrets)
        self.log = self._log.write
        self.text = self._log.text
        self.started = time.time()

    def begin(self, resolved: Mapping[str, Any], plan: Plan) -> None:
        write_text(self.path / "resolved.yaml", to_yaml(dict(resolved)))
        write_json(self.path / "plan.json", plan.model_dump(mode="json"))
        self.log("run_begun", pipeline=plan.pipeline, version=plan.version, host=socket.gethostname(), pid=os.getpid())

    def finish(self, outcome: RunOutcome) -> None:
        status = outcome.exit_status
        self.log("run_ended", state=outcome.state.value, exit_status=status, reason=outcome.reason)
        write_record(self.path / "outcome.json", outcome.model_dump(mode="json"))

    def close(self) -> None:
        self._log.close()
        self._lock.close()


def load_outcome(root: Path, run: str | None = None, *, finished: bool = True) -> RunOutcome:
    """Return the outcome of the named run, or of the newest one.

    Args:
        root: the folder of the project's state.
        run: the name of a run.
        finished: whether it must have finished. Otherwise it may also be running or killed: then its shards, log and
            ledger tell what it has done so far.

    Raises:
        UserError: when there is no such run.
        RunError: when its record is damaged.
    """
    kept = "outcome.json" if finished else "plan.json"
    names = sorted(path.parent.name for path in (root / "runs").glob(f"*/{kept}"))
    if run is not None and run in names:
        found = _outcome_or_state(root, run)
        if finished and found.state is not End.FINISHED:
            raise UserError(f"run {run} has not finished ({found.state}): {found.reason}")
        return found
    newest = (_outcome_or_state(root, name) for name in reversed(names if run is None else []))
    for found in newest:
        if found.state is End.FINISHED or not finished:
            return found
    hint = nearest(run, names) if run else None
    what = "finished run" if finished else "run"
    named = f" {run}" if run else ""
    raise UserError(f"no {what}{named} under {root / 'runs'}" + (f" ({hint})" if hint else ""))


def runs_of(root: Path) -> list[RunLine]:
    """Return all runs of a project, the oldest first."""
    found = []
    for path in sorted((root / "runs").glob("*/plan.json")):
        name = path.parent.name
        try:
            outcome = _read_outcome(root, name)
        except FileNotFoundError:
            found.append(RunLine(run=name, state=_state(root, name)))
        except RunError as error:
            found.append(RunLine(run=name, state="damaged", reason=str(error)))
        else:
            requests = sum(one.requests for one in outcome.spend)
            cost, unpriced = sum(one.cost for one in outcome.spend), sum(one.unpriced for one in outcome.spend)
            line = RunLine(run=name, state=outcome.state, requests=requests, cost=cost, unpriced=unpriced)
            found.append(line.model_copy(update={"reason": outcome.reason}))
    return found


def _state(root: Path, run: str) -> End:
    """Return the state of a run that has left no outcome."""
    return End.RUNNING if has_workers(root, run) else End.KILLED


def _outcome_or_state(root: Path, run: str) -> RunOutcome:
    try:
        return _read_outcome(root, run)
    except FileNotFoundError:
        return _so_far(root, run)


def _so_far(root: Path, run: str) -> RunOutcome:
    """Return what a run without an outcome has done so far, from its plan, its log, the shards and the ledger."""
    folder = root / "runs" / run
    try:
        plan = _PlannedRun.model_validate_json((folder / "plan.json").read_bytes())
    except ValidationError as error:
        raise RunError(f"{folder / 'plan.json'}: not the plan of a run; name another run") from error
    log = folder / LOG
    began = datetime.strptime(run[:22], "%Y%m%d-%H%M%S-%f").replace(tzinfo=UTC).timestamp()
    spent = spent_by(root, f"{plan.pipeline}@{plan.version}", run)
    return RunOutcome(
        run=run,
        pipeline=plan.pipeline,
        version=plan.version,
        started=began,
        finished=log.stat().st_mtime if log.exists() else began,
        stages=tuple(_stage_so_far(root, stage, run) for stage in plan.stages),
        spend=tuple(SpendLine.of(model, amount) for model, amount in spent.items()),
        state=_state(root, run),
    )


def _stage_so_far(root: Path, stage: _PlannedStage, run: str) -> StageOutcome:
    """Return the funnel of the shards of a stage that are finished; `paid` is what `run` paid for them."""
    folder = StageFolder(root, stage.id, stage.key)
    shards = [one for one in (folder.shard_record(*shard) for shard in folder.finished_shards()) if one is not None]
    record, tally = folder.record(), sum((one.tally for one in shards), Tally())
    paid = sum((one.tally for one in shards if one.run == run), Tally()).numbers
    return StageOutcome(
        id=stage.id,
        op=stage.op,
        key=stage.key,
        gives=Kind.NONE if record is None else record.gives,
        digest="" if record is None else record.digest,
        cached=stage.state is State.CACHED,
        done=record is not None,
        tally=tally if record is None else record.tally,
        paid={name: paid.get(f"paid_{name}", 0) for name in PAID},
    )


def _read_outcome(root: Path, run: str) -> RunOutcome:
    path = root / "runs" / run / "outcome.json"
    damage: list[Damage] = []
    found = read_record(path, "name another run, or run the pipeline again: nothing is paid again", damage.append)
    if found is None and not damage:
        raise FileNotFoundError(path)
    try:
        return RunOutcome.model_validate(found)
    except ValidationError as error:
        raise RunError(str(damage[0]) if damage else f"{path}: not the outcome of a run") from error
