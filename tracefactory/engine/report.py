"""The funnel and the lengths, as a person reads them on a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from tracefactory.core.stage import UNCHANGED
from tracefactory.engine.lengths import LengthLine
from tracefactory.store.stages import Tally

_BARS = " ▁▂▃▄▅▆▇█"


@dataclass(frozen=True)
class FunnelLine:
    """One stage of the funnel; `paid` are the numbers of this run alone, `state` is a word or a time left."""

    id: str
    op: str
    tally: Tally
    paid: Mapping[str, float]
    state: str


def funnel(title: str, lines: Iterable[FunnelLine]) -> Table:
    """Return the funnel table: rows in, kept, dropped by reason and errors, then requests, tokens and cost paid."""
    table = Table(title=title, title_justify="left", header_style="bold", expand=False)
    table.add_column("stage", no_wrap=True)
    table.add_column("does", no_wrap=True)
    for name in ("in", "kept", "dropped", "errors"):
        table.add_column(name, justify="right")
    table.add_column("why dropped", max_width=44)
    for name in ("paid requests", "tokens", "tok/s", "cost $"):
        table.add_column(name, justify="right")
    table.add_column("", no_wrap=True)
    for line in lines:
        table.add_row(*_cells(line))
    return table


def _cells(line: FunnelLine) -> list[str]:
    tally, paid = line.tally, line.paid
    reasons = ", ".join(f"{name} {count}" for name, count in sorted(tally.reasons.items(), key=lambda kv: -kv[1])[:4])
    if len(tally.reasons) > 4:
        reasons += f", {len(tally.reasons) - 4} more"
    reasons = "; ".join(text for text in (reasons, _unchanged(tally)) if text)
    counts = [f"{n:,}" for n in (tally.rows_in, tally.kept, tally.dropped, tally.errors)]
    samples = "requests" in tally.numbers
    tokens = paid.get("prompt_tokens", 0) + paid.get("completion_tokens", 0)
    speed = paid.get("completion_tokens", 0) / paid["seconds"] if paid.get("seconds") else 0
    spent = (
        [f"{paid.get('requests', 0):,.0f}", f"{tokens:,.0f}", f"{speed:,.0f}", f"{paid.get('cost', 0):.4f}"]
        if samples
        else [""] * 4
    )
    return [line.id, line.op, *counts, reasons, *spent, line.state]


def _unchanged(tally: Tally) -> str:
    """Say how many of the kept rows a stage could not change, and why; nothing for stages that do not count them."""
    found = {name.removeprefix(UNCHANGED): n for name, n in tally.numbers.items() if name.startswith(UNCHANGED)}
    if not found:
        return ""
    most = ", ".join(f"{reason} {n:.0f}" for reason, n in sorted(found.items(), key=lambda kv: -kv[1])[:4])
    return f"unchanged {sum(found.values()):.0f}: {most}"


def lengths(by_style: Mapping[str, Sequence[int]]) -> RenderableType:
    """Return the distribution of completion tokens by style: quantiles and a histogram on one common scale."""
    table = Table(title="completion tokens of the published traces", title_justify="left", header_style="bold")
    for name in ("style", "rows", "min", "p10", "median", "p90", "max"):
        table.add_column(name, justify="left" if name == "style" else "right")
    longest = max((max(found) for found in by_style.values()), default=0)
    table.add_column(f"0 .. {longest}", no_wrap=True)
    for style, found in sorted(by_style.items()):
        line = LengthLine.of(style, found)
        numbers = (line.rows, line.min, line.p10, line.median, line.p90, line.max)
        table.add_row(style, *map(str, numbers), histogram(found, longest))
    return table


def histogram(values: Sequence[int], top: int, width: int = 40) -> str:
    """Draw counts of `values` over `width` equal bins of 0..top with block characters."""
    bins = [0] * width
    for value in values:
        bins[min(width - 1, value * width // max(top, 1))] += 1
    most = max(bins, default=0)
    return "".join(_BARS[-(-count * (len(_BARS) - 1) // max(most, 1))] for count in bins)


def with_notes(table: RenderableType, notes: Sequence[str]) -> Group:
    """Put the sentences a person must see under a table."""
    return Group(table, *(Text(f"• {note}") for note in notes))
