"""The time left of a stage, from what its requests took so far."""

from __future__ import annotations

import io
import subprocess
import sys
import time
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from tracefactory.engine.reporting.display import _left as left_text
from tracefactory.engine.reporting.report import FunnelLine, funnel, rounded
from tracefactory.store.stages import Tally


def left(live: dict[str, float], rows: int = 40, shards: int = 2) -> str:
    """Ask about a stage of 2 shards over 40 rows of which 2 requests were paid for 10 seconds ago."""
    record = SimpleNamespace(done=lambda: True, exception=lambda: None)
    above = SimpleNamespace(record=record, tally=SimpleNamespace(kept=rows))
    op = SimpleNamespace(rows_made=lambda stage, count: count)
    run: Any = SimpleNamespace(
        stage=SimpleNamespace(inputs=["above"]), op=op, paying=(time.time() - 10, 2), done=[None] * shards
    )
    flow: Any = SimpleNamespace(stages={"above": above})
    return left_text(run, live, flow)


@pytest.mark.parametrize(
    ("live", "message"),
    [
        ({}, ""),
        ({"requests": 2, "done": 2}, ""),
        ({"requests": 12, "done": 10, "in_flight": 4}, "4 in flight, 0:30 left"),
        ({"requests": 12, "done": 10, "in_flight": 11}, "11 in flight"),  # the first answers are the fast ones
        ({"requests": 12, "done": 30}, "0 in flight, 0:10 left"),  # 20 were paid for before
        ({"requests": 0, "done": 10, "elsewhere": 3}, "3 wait for another process"),
        # Where answers decide what is asked next, the bound counts and not the rows.
        ({"requests": 12, "done": 10, "at_most": 160, "shards": 2}, "0 in flight, at most 2:30 left"),
        ({"requests": 12, "done": 10, "at_most": 80, "shards": 1}, ""),  # the other shard has not said yet
    ],
)
def test_the_time_left_goes_by_requests_or_by_their_bound(live: dict[str, float], message: str) -> None:
    assert left(live) == message


def test_no_number_is_cut_off_at_80_columns() -> None:
    notice = "t: paused, tries again at 08:28:45, gives up at 08:58:30 (127.0.0.1:9: the connection failed (OSError))"
    tally = Tally(rows_in=1234567, kept=1200000, dropped=30000, errors=4567, numbers={"requests": 1.0})
    paid = {"requests": 1234567, "prompt_tokens": 123456789, "completion_tokens": 987654321, "cost": 12345.678}
    states = (notice, "3/8 shards, 128 in flight, at most 12:34 left", "waits for run 20261122-084035-554664-sums")
    lines = [FunnelLine(f"a_rather_long_stage_{n}", tally, paid, state) for n, state in enumerate(states)]
    out = io.StringIO()
    Console(file=out, width=80).print(funnel("t", lines))
    message = " ".join(out.getvalue().split())
    assert "…" not in message
    for number in ("1,234,567", "1,200,000", "30,000", "4,567", "1.23M", "1.11B", "12,345.67"):
        assert message.count(f" {number} ") == len(lines), number
    assert all(text in message for text in ("gives up at 08:58:30", "at most 12:34 left", states[2]))


def test_what_a_stage_has_paid_shows_before_its_first_shard_is_done() -> None:
    out = io.StringIO()
    Console(file=out, width=80).print(funnel("t", [FunnelLine("long", Tally(), {"requests": 7, "cost": 0.5}, "runs")]))
    assert " 7 " in out.getvalue()
    assert " 0.5000 " in out.getvalue()


@pytest.mark.parametrize(
    ("number", "text"), [(0, "0"), (99_999, "99,999"), (100_000, "100k"), (1_234_567, "1.23M"), (1.23e10, "12.3B")]
)
def test_large_numbers_are_rounded(number: float, text: str) -> None:
    assert rounded(number) == text


EARLY = """\
import os, signal, sys
import tracefactory.config
from tracefactory.cli import main
tracefactory.config.load_pipeline = lambda *given, **named: os.kill(os.getpid(), signal.SIGTERM)
sys.argv = ["tracefactory", "run", "any.yaml"]
main()
"""


def test_sigterm_before_the_run_begins_ends_as_an_interrupted_run() -> None:
    done = subprocess.run([sys.executable, "-c", EARLY], capture_output=True, text=True, check=False)
    assert done.returncode == 130
    assert "run the same command to continue" in done.stderr
    assert "Traceback" not in done.stderr
