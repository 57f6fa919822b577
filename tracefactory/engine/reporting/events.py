"""What workers tell the log of a run: failures as they come, taken every few seconds by the process that writes it."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from tracefactory.core.model import RequestFailed
from tracefactory.engine.reporting.log import LIMIT

if TYPE_CHECKING:
    from tracefactory.engine.executors.base import Executor

TAKE_S = 2.0
_CHARACTERS = 2_000  # of a message that waits here; the log cuts it again


class Events:
    """The failures of one worker that were not taken yet: at most `LIMIT` of one kind of a stage, and counts."""

    def __init__(self) -> None:
        self._waiting: list[dict[str, Any]] = []
        self._seen: Counter[tuple[str, str, str]] = Counter()
        self._more: Counter[tuple[str, str, str]] = Counter()

    def request_failed(self, stage: str, key: str, problem: str, failure: RequestFailed) -> None:
        """Add a request that has failed for good in this run.

        Args:
            stage: the stage that asked.
            key: the key of the request.
            problem: the problem that it is about.
            failure: why.
        """
        what = {"request": key, "attempts": failure.attempts, "owed": failure.retryable}
        self._add("request_failed", stage, failure.kind, problem, failure.message, what)

    def row_failed(self, stage: str, shard: int, row: str, problem: str, kind: str, message: str) -> None:
        """Add a row that has failed.

        Args:
            stage: the stage.
            shard: its shard.
            row: the id of the row.
            problem: the problem of the row.
            kind: the reason.
            message: what happened.
        """
        self._add("row_failed", stage, kind, problem, message, {"shard": shard, "row": row})

    def take(self) -> list[dict[str, Any]]:
        """Return what was added since the last call, as arguments of `RunLog.write`."""
        counts = [
            {"event": event, "stage": stage, "kind": kind, "count": n} for (event, stage, kind), n in self._more.items()
        ]
        found = [*self._waiting, *counts]
        self._waiting, self._more = [], Counter()
        return found

    def _add(self, event: str, stage: str, kind: str, problem: str, message: str, what: dict[str, Any]) -> None:
        key = (event, stage, kind)
        self._seen[key] += 1
        if self._seen[key] > LIMIT:
            self._more[key] += 1
            return
        if len(message) > _CHARACTERS:  # between two words: the log would not know one half of a secret
            message = " ".join(message[:_CHARACTERS].split()[:-1])
        told = {"event": event, "stage": stage, "kind": kind, "problem": problem, "message": message}
        self._waiting.append({**told, **what})


@asynccontextmanager
async def logged(executor: Executor, log: Callable[..., None]) -> AsyncIterator[None]:
    """Write to a log what the workers tell, and how their models are, while a run goes on.

    Args:
        executor: the workers.
        log: writes a line; see `RunLog.write`.
    """
    notices: dict[str, str] = {}
    servers: set[tuple[str, str]] = set()

    async def take() -> None:
        try:
            for one in await executor.events():
                log(**one)
            models = await executor.models()
            asked = {(name, one.host) for name, status in models.items() for one in status.endpoints}
            for model, host in sorted(asked - servers):  # one that was started again has another port
                log("server", model=model, host=host)
            servers.update(asked)  # a busy worker may not answer this time, and its servers are still there
            for name, status in models.items():
                if status.notice != notices.get(name, ""):
                    log("model", model=name, notice=status.notice or "ready")
                notices[name] = status.notice
        except Exception as error:  # noqa: BLE001  # the log is no reason to end a run, and says what it lacks
            log("events_lost", text=repr(error))

    async def take_repeatedly() -> None:
        while True:
            await asyncio.sleep(TAKE_S)
            await take()

    task = asyncio.create_task(take_repeatedly())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await take()
        log("workers", text="they end now, with the servers that they have started")
