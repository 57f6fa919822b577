"""Which failed rows of a stage a run leaves as they are: their failure is final, or of a kind that is not asked for."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import polars as pl
import pyarrow.parquet as pq

from tracefactory.core.model import RequestFailed
from tracefactory.core.tables import Table
from tracefactory.store.damage import reading
from tracefactory.store.stages import OWED, StageFolder

_DETAIL = re.compile(r"\w+: (.*) \(after (\d+) attempts?\)", re.DOTALL)  # `str` of a RequestFailed


class FailedRow(NamedTuple):
    """A failed row of a finished shard. `request_key` is empty where the row is not one request."""

    id: str
    problem_id: str
    request_key: str
    kind: str
    detail: str
    owed: bool

    def is_retried(self, retry: str) -> bool:
        """Return whether a run tries the row again; `retry` is described at `store.stages.to_retry`."""
        return self.owed if retry == OWED else self.kind == retry

    @property
    def failure(self) -> RequestFailed:
        """Why the row failed."""
        told = _DETAIL.fullmatch(self.detail)
        message, attempts = told.groups() if told else (self.detail, "1")
        return RequestFailed(self.kind, message, attempts=int(attempts), retryable=self.owed)


def failed_rows(folder: StageFolder, index: int, count: int) -> Iterator[FailedRow]:
    """Yield the failed rows of a shard; none while it is not finished, or of a part that is damaged.

    Args:
        folder: the folder of the stage.
        index: the number of the shard.
        count: the number of shards.
    """
    try:
        judged = _read(folder.part(Table.JUDGED, index, count), *_COLUMNS, "failed").filter("failed")
        traces = folder.part(Table.TRACES, index, count)
        keys = dict(_read(traces, "id", "request_key").rows()) if judged.height and traces.exists() else {}
    except (FileNotFoundError, ValueError):  # what reads the part for its rows tells of the damage
        return
    for row_id, problem_id, kind, detail, owed in judged.select(_COLUMNS).rows():
        yield FailedRow(row_id, problem_id, keys.get(row_id, ""), kind, detail or "", owed)


class LeftFailures:
    """Failures that a run does not try again: of rows by stage and id, and of requests by key.

    Args:
        retry: which failed rows are tried again, see `store.stages.to_retry`.
    """

    def __init__(self, retry: str) -> None:
        self.retry = retry
        self.rows: dict[tuple[str, str], RequestFailed] = {}
        self.requests: dict[str, RequestFailed] = {}

    def add(self, folder: StageFolder, index: int, count: int) -> None:
        """Add those of a shard, see `failed_rows`."""
        for row in failed_rows(folder, index, count):
            if not row.is_retried(self.retry):
                self.rows[folder.stage_id, row.id] = row.failure
                if row.request_key:
                    self.requests[row.request_key] = row.failure


_COLUMNS = ("id", "problem_id", "reason", "detail", "owed")


def _read(path: Path, *columns: str) -> pl.DataFrame:
    with reading(path):
        return pl.DataFrame(pq.read_table(path, columns=list(columns)))
