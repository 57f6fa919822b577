"""The time left of a stage, from what its requests took so far."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import pytest

from tracefactory.engine.display import _left as left_text


def left(live: dict[str, float], rows: int = 40, shards: int = 2) -> str:
    """Ask about a stage of 2 shards over 40 rows that has been running for 10 seconds."""
    record = SimpleNamespace(done=lambda: True, exception=lambda: None)
    above = SimpleNamespace(record=record, tally=SimpleNamespace(kept=rows))
    op = SimpleNamespace(rows_made=lambda stage, count: count)
    run: Any = SimpleNamespace(
        stage=SimpleNamespace(inputs=["above"]), op=op, started=time.time() - 10, done=[None] * shards
    )
    flow: Any = SimpleNamespace(stages={"above": above})
    return left_text(run, live, flow)


@pytest.mark.parametrize(
    ("live", "said"),
    [
        ({}, ""),
        ({"requests": 10, "done": 10, "in_flight": 4}, "4 in flight, 0:30 left"),
        ({"requests": 10, "done": 30}, "0 in flight, 0:10 left"),  # 20 were paid for before
        # Where answers decide what is asked next, the bound counts and not the rows.
        ({"requests": 10, "done": 10, "at_most": 160, "shards": 2}, "0 in flight, at most 2:30 left"),
        ({"requests": 10, "done": 10, "at_most": 80, "shards": 1}, ""),  # the other shard has not said yet
    ],
)
def test_the_time_left_goes_by_requests_or_by_their_bound(live: dict[str, float], said: str) -> None:
    assert left(live) == said
