"""The progress of a run as data: rates, the time left and its basis, the state of every server.

`snapshot` is what `tracefactory run --progress json` prints as JSON lines, what the run's log keeps, and what
`engine.reporting.telemetry` exports.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from tracefactory.engine.flow import Flow, StageRun
from tracefactory.serving.status import ModelStatus

Live = Mapping[str, float]
"""The live numbers of one stage: requests, tokens, cost, requests in flight."""


class TimeLeft(NamedTuple):
    """An estimate of the time left: seconds, whether they are an upper bound, and what they are estimated from."""

    seconds: float
    at_most: bool
    basis: str


@dataclass(frozen=True)
class Progress:
    """The live numbers of all stages and the state of all models at one time (seconds of `time.monotonic`)."""

    at: float
    stages: Mapping[str, Live]
    models: Mapping[str, ModelStatus]


def time_left(run: StageRun, live: Live, flow: Flow) -> TimeLeft | None:
    """Return the time left of a stage, estimated from its speed since its first requests; None without an estimate."""
    inputs = [flow.stages[source] for source in run.stage.inputs]
    if run.paying is None or not all(one.record.done() and not one.record.exception() for one in inputs):
        return None
    seconds, paid = time.time() - run.paying[0], live.get("requests", 0) - run.paying[1]
    if paid <= 0 or paid < live.get("in_flight", 0):
        return None  # not as many answers yet as are under way, so their speed is that of a few fast ones
    bound = live.get("at_most", 0)
    if bound and live.get("shards", 0) < len(run.done):
        return None  # shards that have not started have not reported their bounds
    total = bound or run.op.rows_made(run.stage, sum(one.tally.kept for one in inputs))
    if total is None:
        return None
    basis = f"{paid:.0f} requests in {seconds:.0f} s"
    return TimeLeft(max(0.0, total - live.get("done", 0)) * seconds / paid, bool(bound), basis)


def snapshot(flow: Flow, now: Progress, before: Progress | None) -> dict[str, Any]:
    """Return the progress of a run as JSON data.

    Args:
        flow: the run.
        now: the present numbers.
        before: earlier ones, from which rates per second are computed.
    """
    earlier: Mapping[str, Live] = {} if before is None else before.stages
    seconds = 0.0 if before is None else now.at - before.at
    stages = [
        _stage(run, now.stages.get(name, {}), flow, earlier.get(name, {}), seconds) for name, run in flow.stages.items()
    ]
    models = [
        {"model": name, "notice": status.notice, "endpoints": [one._asdict() for one in status.endpoints]}
        for name, status in now.models.items()
    ]
    return {"pipeline": flow.pipeline.name, "version": flow.pipeline.version, "stages": stages, "models": models}


def _stage(run: StageRun, live: Live, flow: Flow, before: Live, seconds: float) -> dict[str, Any]:
    tally = run.tally
    left = None if run.record.done() else time_left(run, live, flow)

    def rate(*names: str) -> float:
        grown = sum(live.get(name, 0) - before.get(name, 0) for name in names)
        return round(max(0.0, grown) / seconds, 3) if seconds else 0.0

    return {
        "stage": run.stage.id,
        "state": "done" if run.record.done() else "waits" if run.started is None else "runs",
        "waiting": run.waiting,
        "shards_done": run.finished,
        "shards": len(run.done),
        **{name: getattr(tally, name) for name in ("rows_in", "kept", "dropped", "errors", "owed")},
        **{name: live.get(name, 0) for name in ("in_flight", "elsewhere", "requests")},
        **{name: live.get(name, 0) for name in ("prompt_tokens", "completion_tokens")},
        **{name: live.get(name, 0) for name in ("cost", "unpriced")},
        "requests_per_s": rate("requests"),
        "tokens_per_s": rate("prompt_tokens", "completion_tokens"),
        "left_s": None if left is None else round(left.seconds, 1),
        "left_is_at_most": left is not None and left.at_most,
        "left_basis": "" if left is None else left.basis,
    }
