"""The records of each run: `runs/<time>-<name>/` with the resolved pipeline, the plan, a log and the outcome."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from tracefactory.core.errors import BudgetReached, Interrupted, RunError, RunStopped, UserError, nearest
from tracefactory.core.files import write_json, write_text
from tracefactory.core.rows import Frozen, Kind
from tracefactory.core.yamlfile import to_yaml
from tracefactory.engine.plan import Plan
from tracefactory.store.damage import Damage
from tracefactory.store.leases import RunLock, has_workers
from tracefactory.store.records import read_record, write_record
from tracefactory.store.rows import StageRows, stored_rows
from tracefactory.store.stages import Tally


class End(StrEnum):
    """How a run has ended. STOPPED: it could not go on for a reason outside of it, such as no credit."""

    FINISHED = "finished"
    CAP = "cap"
    STOPPED = "stopped"
    INTERRUPTED = "interrupted"
    FAILED = "failed"

    @classmethod
    def of(cls, error: BaseException | None) -> End:
        """Return the end of a run that raised `error`."""
        if error is None:
            return cls.FINISHED
        kinds = {BudgetReached: cls.CAP, RunStopped: cls.STOPPED, Exception: cls.FAILED}
        if isinstance(error, Interrupted):
            return cls.INTERRUPTED
        return next((end for kind, end in kinds.items() if isinstance(error, kind)), cls.INTERRUPTED)


class StageOutcome(Frozen):
    """One stage of a run: its key, its funnel, and what this run paid.

    A stage that is not `done` has no digest, and the funnel of its finished shards.
    """

    id: str
    op: str
    key: str
    gives: Kind
    digest: str
    cached: bool
    done: bool = True
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


class RunOutcome(Frozen):
    """A run that has ended. Times are Unix seconds; `spend` is by model, in runs since version 0.3.

    `reason` is the sentence with which an unfinished run ended.
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


class RunLine(Frozen):
    """One run in a list: `state` is an `End`, `running`, or `killed` when it left no outcome.

    `requests`, and `cost` in US dollars, are what it spent; None where that is not known.
    """

    run: str
    state: str
    requests: int | None = None
    cost: float | None = None
    unpriced: int = 0
    reason: str = ""


class RunFolder:
    """The folder of one run, with a lock while the run is alive."""

    def __init__(self, root: Path, pipeline: str) -> None:
        stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S-%f")
        self.id = f"{stamp}-{pipeline}"
        self.path = root / "runs" / self.id
        self._lock = RunLock(root, self.id)
        self._log = (self.path / "log.jsonl").open("a", encoding="utf-8")
        self.started = time.time()

    def begin(self, resolved: Mapping[str, Any], plan: Plan) -> None:
        write_text(self.path / "resolved.yaml", to_yaml(dict(resolved)))
        write_json(self.path / "plan.json", plan.model_dump(mode="json"))

    def log(self, event: str, **what: Any) -> None:
        """Add a line to the log. On a full disk it is written later, or left out: the run goes on without it."""
        with suppress(OSError):
            self._log.write(json.dumps({"time": time.time(), "event": event, **what}, ensure_ascii=False) + "\n")
            self._log.flush()

    def finish(self, outcome: RunOutcome) -> None:
        write_record(self.path / "outcome.json", outcome.model_dump(mode="json"))

    def close(self) -> None:
        with suppress(OSError):
            self._log.close()
        self._lock.close()


def load_outcome(root: Path, run: str | None = None, *, finished: bool = True) -> RunOutcome:
    """Return the outcome of the named run, or of the newest one.

    Args:
        root: the folder of the project's state.
        run: the name of a run.
        finished: whether it must have finished.

    Raises:
        UserError: when there is no such run.
        RunError: when its record is damaged.
    """
    names = sorted(path.parent.name for path in (root / "runs").glob("*/outcome.json"))
    if run is not None and run in names:
        found = _read_outcome(root, run)
        if finished and found.state is not End.FINISHED:
            raise UserError(f"run {run} has not finished ({found.state}): {found.reason}")
        return found
    newest = (_read_outcome(root, name) for name in reversed(names if run is None else []))
    for found in newest:
        if found.state is End.FINISHED or not finished:
            return found
    hint = nearest(run, names) if run else None
    what = "finished run" if finished else "run that has ended"
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
            found.append(RunLine(run=name, state="running" if has_workers(root, name) else "killed"))
        except RunError as error:
            found.append(RunLine(run=name, state="damaged", reason=str(error)))
        else:
            requests = sum(one.requests for one in outcome.spend)
            cost, unpriced = sum(one.cost for one in outcome.spend), sum(one.unpriced for one in outcome.spend)
            line = RunLine(run=name, state=outcome.state, requests=requests, cost=cost, unpriced=unpriced)
            found.append(line.model_copy(update={"reason": outcome.reason}))
    return found


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
