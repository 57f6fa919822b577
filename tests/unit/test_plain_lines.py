"""Plain lines: one for every change, and one at least every 30 s that says what is waited for, since when."""

from __future__ import annotations

import io
import re
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

from rich.console import Console

from tracefactory.engine.reporting.display import Display
from tracefactory.engine.reporting.plain import PlainLines
from tracefactory.engine.reporting.report import FunnelLine, funnel
from tracefactory.store.stages import Tally


def printed(*looks: list[tuple[str, str, bool]], every_s: float = 10.0) -> list[tuple[float, str]]:
    """Return what is printed, with the time of each line, when it is looked at `every_s` seconds."""
    now = [0.0]
    found: list[tuple[float, str]] = []
    lines = PlainLines(lambda text: found.append((now[0], text)), lambda: now[0])
    for look in looks:
        lines.show(look)
        now[0] += every_s
    return found


def test_a_line_is_printed_when_it_changes() -> None:
    looks = [[("a", f"a: {number // 2}", False), ("b", "", False)] for number in range(4)]
    assert [text for _, text in printed(*looks)] == ["a: 0", "a: 1"]


def test_a_line_comes_every_30_s_and_says_what_is_waited_for() -> None:
    stages = [("a", "a: done", True), ("b", "b: teacher: paused", False), ("c", "", False)]
    found = printed(*[stages] * 100, every_s=12.0)  # looking takes some seconds
    times = [at for at, _ in found]
    assert max(later - at for at, later in pairwise(times)) <= 30
    for _, text in found[2:]:
        assert re.fullmatch(r"b: teacher: paused; no change since \d\d:\d\d:\d\d", text)


def test_a_run_that_has_not_begun_a_stage_says_so() -> None:
    for stages in ([], [("a", "", False)], [("a", "a: done", True)]):
        found = [text for _, text in printed(*[stages] * 6) if "waits for a first stage" in text]
        assert len(found) == 2


def test_a_message_that_looks_like_markup_is_printed_as_it_is() -> None:
    out = io.StringIO()
    Display(Console(file=out), "plain")._say("teacher: [/b] is [red]")
    assert re.fullmatch(r"\d\d:\d\d:\d\d teacher: \[/b\] is \[red\]\n", out.getvalue())
    out = io.StringIO()
    Console(file=out, width=80).print(funnel("t", [FunnelLine("short", Tally(), {}, "[/b] [red]")]))
    assert "[/b] [red]" in out.getvalue()


def test_a_terminal_has_no_times_before_its_lines() -> None:
    out: Any = SimpleNamespace(is_terminal=True, print=lambda text, **style: lines.append(text))
    lines: list[str] = []
    Display(out)._say("stopping")
    assert lines == ["stopping"]
