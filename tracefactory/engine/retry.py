"""Which requests of a shard that is run again are not sent again: those whose failure is final, or not asked for."""

from __future__ import annotations

import re

import polars as pl

from tracefactory.core.model import RequestFailed
from tracefactory.core.tables import Table
from tracefactory.store.stages import OWED, StageFolder

_DETAIL = re.compile(r"\w+: (.*) \(after (\d+) attempts?\)", re.DOTALL)  # `str` of a RequestFailed


def final_failures(folder: StageFolder, index: int, count: int, retry: str) -> dict[str, RequestFailed]:
    """Return the failures of a finished shard that are not tried again, by request key.

    Args:
        folder: the folder of the stage.
        index: the number of the shard.
        count: the number of shards.
        retry: which failed rows are tried again, see `store.stages.to_retry`.
    """
    traces = folder.part(Table.TRACES, index, count)
    if not traces.exists():  # a stage that only judges has no requests of its own rows
        return {}
    judged = pl.read_parquet(
        folder.part(Table.JUDGED, index, count), columns=["id", "failed", "owed", "reason", "detail"]
    )
    again = pl.col("owed") if retry == OWED else pl.col("reason") == retry
    failed = judged.filter("failed").filter(~again)
    if failed.is_empty():
        return {}
    keys = pl.read_parquet(traces, columns=["id", "request_key"]).filter(pl.col("request_key") != "")
    found = {}
    for key, owed, reason, detail in (
        failed.join(keys, on="id").select("request_key", "owed", "reason", "detail").rows()
    ):
        told = _DETAIL.fullmatch(detail)
        message, attempts = told.groups() if told else (detail, "1")
        found[key] = RequestFailed(reason, message, attempts=int(attempts), retryable=owed)
    return found
