"""Stop a run when too many requests or rows of a stage fail, with the causes and how to go on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Any

from tracefactory.config.command import run_command
from tracefactory.core.errors import RunError, RunStopped
from tracefactory.core.model import ChatRequest, RequestFailed
from tracefactory.core.pipeline import Pipeline, StageSpec
from tracefactory.core.rows import problem_id_of
from tracefactory.core.stage import Batch, Record, Result
from tracefactory.engine.reporting.events import Events
from tracefactory.engine.retry import LeftFailures, failed_rows
from tracefactory.serving.failures import FAILURES
from tracefactory.store.stages import StageFolder, Tally

LOOKED_AT_FROM = 50
"""Requests or rows of a stage before its share of failures says anything."""
MESSAGES = 5
_NOT_SENT = "not_sent"  # a run that sends nothing says so itself
_CHARACTERS = 300  # of one message


class ErrorRate:
    """Counts what succeeded and failed of one stage.

    Args:
        stage: the stage.
        pipeline: its pipeline, for the share that may fail.
        what: what is counted, such as "requests".
    """

    def __init__(self, stage: StageSpec[Any], pipeline: Pipeline, what: str) -> None:
        self.stage, self.pipeline, self.what = stage, pipeline, what
        self.succeeded = 0
        self.reasons: Counter[str] = Counter()
        self._messages: dict[str, str] = {}  # the problem of the first failure with a message, by message

    def failed(self, reason: str, message: str, problem_id: str) -> None:
        """Count a failure.

        Args:
            reason: the reason of the failed row.
            message: what happened; of a traceback, the last line counts.
            problem_id: the problem that it happened to.
        """
        self.reasons[reason] += 1
        line = " ".join((message.strip().splitlines() or [reason])[-1].split())
        if len(self._messages) < MESSAGES:
            self._messages.setdefault(line, problem_id)

    def too_many(self) -> RunStopped | None:
        """Return why the run stops; None while few enough have failed."""
        failed, limit = self.reasons.total(), self.pipeline.max_error_rate(self.stage)
        total = self.succeeded + failed
        if total < LOOKED_AT_FROM or failed <= limit * total:
            return None
        return RunStopped(
            f"{self.stage.id}: {failed:,} of {total:,} {self.what} failed ({failed / total:.0%}), more than "
            f"max_error_rate: {limit:g}. {causes(self.reasons, self._messages)} What was paid for is stored, and what "
            f"failed is tried again. To go on: {run_command(self.pipeline)} ({self.pipeline.file.name}:"
            f"{self.stage.line}: `run: {{max_error_rate: ...}}` accepts another share)"
        )


class Failing:
    """Counts the requests and rows of the stages of one worker; `events` has the failures, for the log of the run.

    Args:
        pipeline: the pipeline.
        left: failures of earlier runs that are not tried again; they do not count.
        stop: ends the run; called when too many fail.
    """

    def __init__(self, pipeline: Pipeline, left: LeftFailures, stop: Callable[[RunError], None]) -> None:
        self._left, self._stop = left, stop
        self.events = Events()
        self._requests = _by_stage(pipeline, "requests")
        self._rows = _by_stage(pipeline, "rows")

    async def counted(self, stage_id: str, request: ChatRequest, paying: Awaitable[Record]) -> Record:
        """Return the record of a request, and count whether there is one.

        Raises:
            RequestFailed: as `paying` does.
        """
        rate = self._requests[stage_id]
        try:
            record = await paying
        except RequestFailed as failure:
            if failure.kind != _NOT_SENT and request.key not in self._left.requests:
                rate.failed(failure.kind, failure.message, request.near)
                self.events.request_failed(stage_id, request.key, request.near, failure)
                if (why := rate.too_many()) is not None:
                    self._stop(why)
            raise
        rate.succeeded += 1
        return record

    def add_stored(self, stage_id: str, requests: int) -> None:
        """Count requests whose completion is stored."""
        self._requests[stage_id].succeeded += requests

    def add_finished(self, stage_id: str, tally: Tally) -> None:
        """Count the rows of a shard that an earlier run has finished, without its failures."""
        for rates in (self._requests, self._rows):
            rates[stage_id].succeeded += tally.rows_in - tally.errors

    def add_rows(self, stage_id: str, batch: Batch, result: Result, shard: int = 0) -> None:
        """Count the rows of a batch of a shard that a stage has worked on.

        Raises:
            RunStopped: when too many rows of the stage have failed.
        """
        rate = self._rows[stage_id]
        rows = {row.id: row for row in batch.rows} | {made.row.id: made.row for made in result.made}
        judged = [(one.id, one.decision) for one in result.judged] + [(one.row.id, one.decision) for one in result.made]
        for row_id, decision in judged:
            if not decision.failed:
                rate.succeeded += 1
            elif decision.reason != _NOT_SENT and (stage_id, row_id) not in self._left.rows:
                problem_id = problem_id_of(rows[row_id])
                rate.failed(str(decision.reason), decision.detail or "", problem_id)
                self.events.row_failed(stage_id, shard, row_id, problem_id, str(decision.reason), decision.detail or "")
        if (why := rate.too_many()) is not None:
            self._stop(why)
            raise why


def check_shards(
    stage: StageSpec[Any], pipeline: Pipeline, folder: StageFolder, shards: Collection[int], count: int, total: Tally
) -> None:
    """Check the share of owed rows in the shards that a run has finished, on all of its workers.

    Every worker looks at its own failures as they come; other failures may be those of earlier runs that are left.

    Args:
        stage: the stage.
        pipeline: its pipeline.
        folder: the folder of the stage.
        shards: the numbers of these shards.
        count: the number of shards of the stage.
        total: the counts of these shards, added up.

    Raises:
        RunStopped: when too many rows are owed.
    """
    if total.rows_in < LOOKED_AT_FROM or total.owed <= pipeline.max_error_rate(stage) * total.rows_in:
        return
    rate = ErrorRate(stage, pipeline, "rows")
    rate.succeeded = total.rows_in - total.owed
    for row in (row for index in sorted(shards) for row in failed_rows(folder, index, count) if row.owed):
        rate.failed(row.kind, row.detail, row.problem_id)
    if (why := rate.too_many()) is not None:
        raise why


def causes(reasons: Mapping[str, int], messages: Mapping[str, str]) -> str:
    """Return sentences with the reasons and their counts, what to do about them, and the first different messages.

    Args:
        reasons: the number of rows by reason.
        messages: the id of the first row or problem with each message, by message.
    """
    counts = sorted(reasons.items(), key=lambda one: -one[1])
    told = [f"Reasons: {', '.join(f'{reason} {count:,}' for reason, count in counts)}."]
    remedies = dict.fromkeys(FAILURES[reason].remedy for reason, _ in counts if reason in FAILURES)
    told += [f"{remedy[0].upper()}{remedy[1:]}." for remedy in remedies if remedy]
    if messages:
        shown = (f"{row[:12]}: {text[:_CHARACTERS]}" for text, row in messages.items())
        told.append(f"First messages: {'; '.join(shown)}.")
    return " ".join(told)


def _by_stage(pipeline: Pipeline, what: str) -> Mapping[str, ErrorRate]:
    return {stage.id: ErrorRate(stage, pipeline, what) for stage in pipeline.stages}
