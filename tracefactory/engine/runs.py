"""The records of each run: `runs/<time>-<name>/` with the resolved pipeline, the plan, a log and the outcome."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, ValidationError

from tracefactory.core.errors import RunError, UserError, nearest
from tracefactory.core.files import write_json, write_text
from tracefactory.core.rows import Frozen, Kind
from tracefactory.engine.plan import Plan
from tracefactory.store.damage import Damage
from tracefactory.store.leases import RunLock
from tracefactory.store.records import read_record, write_record
from tracefactory.store.rows import StageRows, stored_rows
from tracefactory.store.stages import Tally


class StageOutcome(Frozen):
    """One stage of a finished run: its key, its funnel, and what this run paid."""

    id: str
    op: str
    key: str
    gives: Kind
    digest: str
    cached: bool
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
    """A finished run. Times are Unix seconds; `spend` is by model, in runs since version 0.3."""

    run: str
    pipeline: str
    version: str
    started: float
    finished: float
    stages: tuple[StageOutcome, ...]
    spend: tuple[SpendLine, ...] = ()


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
        write_text(self.path / "resolved.yaml", yaml.safe_dump(dict(resolved), sort_keys=False, allow_unicode=True))
        write_json(self.path / "plan.json", plan.model_dump(mode="json"))

    def log(self, event: str, **what: Any) -> None:
        self._log.write(json.dumps({"time": time.time(), "event": event, **what}, ensure_ascii=False) + "\n")
        self._log.flush()

    def finish(self, outcome: RunOutcome) -> None:
        write_record(self.path / "outcome.json", outcome.model_dump(mode="json"))

    def close(self) -> None:
        self._log.close()
        self._lock.close()


def load_outcome(root: Path, run: str | None = None) -> RunOutcome:
    """Return the outcome of the named run, or of the newest finished run.

    Raises:
        UserError: when there is no such run.
        RunError: when its record is damaged.
    """
    names = sorted(path.parent.name for path in (root / "runs").glob("*/outcome.json"))
    if run is None and names:
        run = names[-1]
    if run not in names:
        hint = nearest(run, names) if run else None
        raise UserError(f"no finished run {run or ''} under {root / 'runs'}" + (f" ({hint})" if hint else ""))
    path = root / "runs" / run / "outcome.json"
    damage: list[Damage] = []
    found = read_record(path, "name another run, or run the pipeline again: nothing is paid again", damage.append)
    try:
        return RunOutcome.model_validate(found)
    except ValidationError as error:
        raise RunError(str(damage[0]) if damage else f"{path}: not the outcome of a run") from error
