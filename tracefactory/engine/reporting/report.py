"""Terminal output of the funnel and of length distributions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from textwrap import shorten

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from tracefactory.core.prices import dollars
from tracefactory.core.stage import UNCHANGED
from tracefactory.engine.lengths import LengthLine
from tracefactory.engine.runs import RunLine, SpendLine
from tracefactory.store.stages import Tally

_STATE = 12  # characters of a state in the table
_BARS = " ▁▂▃▄▅▆▇█"


@dataclass(frozen=True)
class FunnelLine:
    """One stage of the funnel; `paid` are the numbers of this run, `state` is a state or the time left."""

    id: str
    tally: Tally
    paid: Mapping[str, float]
    state: str


def plain_table(title: str) -> Table:
    """Return an empty table without a frame."""
    return Table(title=title, title_justify="left", header_style="bold", box=SIMPLE_HEAD, pad_edge=False)


def funnel(title: str, lines: Iterable[FunnelLine]) -> Group:
    """Return the funnel: rows in, kept, dropped and failed by stage with the costs, then the reasons by stage.

    No number is cut off at 80 columns, for up to 9,999,999 rows: stages and states are folded instead, and a longer
    state is a line below the table.
    """
    table = plain_table(title)
    table.padding = (0, 1, 0, 0)
    table.add_column("stage", overflow="fold")
    for name in ("in", "kept", "dropped", "errors", "paid", "tokens", "cost $"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("state", overflow="fold")
    reasons: list[Text] = []
    for line in lines:
        state, _, more = line.state.partition(", ") if len(line.state) > _STATE else (line.state, "", "")
        if len(state) > _STATE:
            state, more = "see below", line.state
        table.add_row(*_cells(line), Text(state))  # a message of a server may look like markup
        if more:
            reasons.append(Text(f"• {line.id}: {more}"))
        found = sorted(line.tally.reasons.items(), key=lambda one: -one[1])
        dropped = ", ".join(f"{name} {count:,}" for name, count in found)
        told = (f"dropped {dropped}" if dropped else "", _unchanged(line.tally))
        if why := "; ".join(text for text in told if text):
            reasons.append(Text(f"• {line.id}: {why}"))
    return Group(table, *reasons)


def _cells(line: FunnelLine) -> list[str]:
    tally, paid = line.tally, line.paid
    counts = [f"{n:,}" for n in (tally.rows_in, tally.kept, tally.dropped, tally.errors)]
    tokens = paid.get("prompt_tokens", 0) + paid.get("completion_tokens", 0)
    cost = dollars(paid.get("cost", 0.0), paid.get("unpriced", 0), paid.get("requests", 0))
    if paid.get("cost", 0.0) >= 100:
        cost = cost[:-2]  # without hundredths of cents
    spent = [rounded(paid.get("requests", 0)), rounded(tokens), cost.replace("at least ", "≥ ")]
    return [line.id, *counts, *(spent if "requests" in tally.numbers or paid.get("requests") else [""] * 3)]


def rounded(number: float) -> str:
    """Return a number in at most six characters: 99,999 exactly, then 123k, 1.23M, 12.3B."""
    for limit, unit in ((1e9, "B"), (1e6, "M"), (1e5, "k")):
        if number >= limit:
            share = number / (1e3 if unit == "k" else limit)
            return f"{share:.3g}{unit}" if share < 999.5 else f"{share:,.0f}{unit}"
    return f"{number:,.0f}"


def _unchanged(tally: Tally) -> str:
    """Return the number of kept rows that a stage could not change, with reasons; empty for other stages."""
    found = {name.removeprefix(UNCHANGED): n for name, n in tally.numbers.items() if name.startswith(UNCHANGED)}
    if not found:
        return ""
    most = ", ".join(f"{reason} {n:.0f}" for reason, n in sorted(found.items(), key=lambda one: -one[1]))
    return f"unchanged {sum(found.values()):.0f}: {most}"


def spending(lines: Sequence[SpendLine]) -> RenderableType:
    """Return what a run spent by model, with the prices and where they come from."""
    table = plain_table("spent in this run")
    for name in ("model", "requests", "tokens", "cost $", "GPU-hours"):
        table.add_column(name, justify="left" if name == "model" else "right", no_wrap=True)
    table.add_column("price")
    for one in lines:
        cost = dollars(one.cost, one.unpriced, one.requests).replace("at least ", "≥ ")
        tokens, hours = one.prompt_tokens + one.completion_tokens, f"{one.gpu_hours:.4f}" if one.gpu_hours else ""
        table.add_row(one.model, f"{one.requests:,}", f"{tokens:,}", cost, hours, one.price)
    return table


def run_list(lines: Sequence[RunLine]) -> RenderableType:
    """Return a list of runs: how they ended and what they spent. It fits 80 columns for names up to 32 characters."""
    table = plain_table("runs")
    for name in ("run", "state", "requests", "cost $"):
        table.add_column(name, justify="left" if name in ("run", "state") else "right", no_wrap=True)
    table.add_column("why")
    for one in lines:
        cost = "" if one.cost is None else dollars(one.cost, one.unpriced, one.requests or 0).replace("at least ", "≥ ")
        requests = "" if one.requests is None else f"{one.requests:,}"
        table.add_row(one.run, one.state, requests, cost, shorten(one.reason, 60, placeholder=" ..."))
    return table


def lengths(by_style: Mapping[str, Sequence[int]], stage: str = "") -> RenderableType:
    """Return the distribution of completion tokens by style: quantiles, and histograms on a common scale.

    `stage` is the id of the stage that published the traces, where there are several.
    """
    table = plain_table(f"completion tokens of the published traces{f': {stage}' if stage else ''}")
    for name in ("style", "rows", "min", "p10", "median", "p90", "max"):
        table.add_column(name, justify="left" if name == "style" else "right")
    longest = max((max(found) for found in by_style.values()), default=0)
    table.add_column(f"0 .. {longest}", no_wrap=True)
    for style, found in sorted(by_style.items()):
        line = LengthLine.of(style, found)
        numbers = (line.rows, line.min, line.p10, line.median, line.p90, line.max)
        table.add_row(style, *map(str, numbers), histogram(found, longest))
    return table


def histogram(values: Sequence[int], top: int, width: int = 24) -> str:
    """Return a histogram of `values` with `width` equal bins of 0..top, in block characters."""
    bins = [0] * width
    for value in values:
        bins[min(width - 1, value * width // max(top, 1))] += 1
    most = max(bins, default=0)
    return "".join(_BARS[-(-count * (len(_BARS) - 1) // max(most, 1))] for count in bins)


def with_notes(table: RenderableType, notes: Sequence[str]) -> Group:
    """Return a table with notes for the user below it."""
    return Group(table, *(Text(f"• {note}") for note in notes))
