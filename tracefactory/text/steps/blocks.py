"""Split a text into blocks: paragraphs, lists, tables, headings and displays, in one pass over its lines."""

from __future__ import annotations

import re
from bisect import bisect_right
from dataclasses import dataclass, field
from enum import Enum
from itertools import pairwise

from tracefactory.text.steps.protect import Span

# Lengths in characters. The items of a list longer than MAX_LIST are blocks, because it is the outline of a solution;
# so are items separated by blank lines, one of which is longer than MAX_LOOSE_ITEM. A lead-in is joined to the block
# after it up to MAX_JOINED, so that a text with only lead-ins still has steps.
MAX_LIST = 1_200
MAX_LOOSE_ITEM = 160
MAX_JOINED = 2_000
# A text with fewer than one blank line in this many lines has one paragraph per line.
LINES_PER_BLANK = 8

_ITEM = re.compile(
    r"(?P<indent>[ \t]*+)(?:[-*+•]|\(?\d{1,3}[.)]|\(?[a-z][.)]|[（(]?[一二三四五六七八九十]{1,3}[）)、.])[ \t]+\S"
)
_HEADING = re.compile(
    r"[ \t]*+(?:#{1,6}[ \t]+\S[^\n]*+|\*\*[^*\n]{1,120}\*\*[ \t]*+:?|\*\*[^*\n]{1,120}[:：]\*\*)[ \t\r]*$"
)
_TABLE_RULE = re.compile(r"[ \t]*+\|?[ \t]*+:?-{2,}+:?[ \t]*+(?:\|[ \t]*+:?-{2,}+:?[ \t]*+)*+\|?[ \t\r]*$")
_STEP_LABEL = re.compile(
    r"[ \t>*_#]*+(?:(?:step|case|part|stage)[ \t]+(?:\d{1,3}|[ivx]{1,5})\b|第[一二三四五六七八九十\d]+步)",
    re.I,
)
_LEAD_IN = re.compile(r"[:：,，][ \t*_]*$")
_CONTINUES = re.compile(r"[ \t]*+[a-z]{3,}\b")
_ENDED = re.compile(r"[.!?。！？;；…][\"'”’」』)\]）*_]*$")


class Kind(Enum):
    """The kind of a block."""

    PROSE = "prose"
    DISPLAY = "display"
    CODE = "code"
    LIST = "list"
    TABLE = "table"
    HEADING = "heading"


@dataclass(frozen=True)
class _Line:
    """One line: characters [start, end) including its line end; `inside` when it starts inside a protected span."""

    start: int
    end: int
    text: str
    inside: bool
    opens: Kind | None  # the block span that starts with this line

    @property
    def blank(self) -> bool:
        """Whether the line has only white space, outside of a protected span."""
        return not self.inside and not self.text.strip()


@dataclass
class Block:
    """Characters [start, end), including the blank lines after it.

    `whole` are the ranges that must not be split; `items` are the starts and indents of a list's items; `loose` means
    that there is a blank line between two items.
    """

    start: int
    end: int
    kind: Kind
    whole: list[tuple[int, int]] = field(default_factory=list)
    items: list[tuple[int, int]] = field(default_factory=list)
    loose: bool = False


def blocks(text: str, spans: list[Span]) -> list[Block]:
    """Return the blocks of a text.

    Args:
        text: the text.
        spans: its protected spans, in order.

    Returns:
        The blocks in order, which cover the text; lead-ins and headings are joined to the next block. A text of white
        space has none.
    """
    lines = _lines(text, spans)
    filled = sum(not line.blank for line in lines)
    gaps = sum(line.blank and not before.blank for before, line in pairwise(lines))
    units = _units(lines, by_line=gaps * LINES_PER_BLANK < filled)
    if units:
        units[0].start = 0
    return _join_lead_ins(text, [part for unit in units for part in _split_outline(unit)])


def _lines(text: str, spans: list[Span]) -> list[_Line]:
    starts = [span.start for span in spans]
    found, at = [], 0
    while at < len(text):
        end = text.find("\n", at) + 1 or len(text)
        content = text[at:end]
        before = bisect_right(starts, at) - 1
        inside = before >= 0 and spans[before].start < at < spans[before].end
        here = bisect_right(starts, at + len(content) - len(content.lstrip())) - 1
        opens = None
        if not inside and here >= 0 and spans[here].start >= at and spans[here].block:
            opens = Kind.CODE if content.lstrip()[:1] in ("`", "~") else Kind.DISPLAY
        found.append(_Line(at, end, content, inside, opens))
        at = end
    return found


def _units(lines: list[_Line], *, by_line: bool) -> list[Block]:
    """Group lines into blocks; `by_line` makes every line of prose a block."""
    units: list[Block] = []
    gap = False
    for number, line in enumerate(lines):
        current = units[-1] if units else None
        if line.blank or line.inside:
            gap = gap or line.blank
        else:
            kind = _kind(lines, number, current, gap=gap)
            if current is None or _begins(current, lines[number - 1], line, kind, gap=gap, by_line=by_line):
                current = Block(line.start, line.end, kind)
                units.append(current)
            item = _ITEM.match(line.text) if kind is Kind.LIST else None
            if item:
                current.loose = current.loose or (gap and bool(current.items))
                current.items.append((line.start, len(item["indent"].expandtabs(4))))
            gap = False
        if current:
            current.end = line.end
    return units


def _kind(lines: list[_Line], number: int, current: Block | None, *, gap: bool) -> Kind:
    line = lines[number]
    if current and current.kind is Kind.LIST and line.text[:1].isspace():
        return Kind.LIST  # an indented line continues the item above it
    if line.opens:
        return line.opens
    if _HEADING.match(line.text):
        return Kind.HEADING
    if "|" in line.text:
        near = [line.text, *(after.text for after in lines[number + 1 : number + 2])]
        if line.text.lstrip().startswith("|") or any("|" in row and _TABLE_RULE.match(row) for row in near):
            return Kind.TABLE
        if current and current.kind is Kind.TABLE and not gap:
            return Kind.TABLE
    return Kind.LIST if _ITEM.match(line.text) else Kind.PROSE


def _begins(current: Block, before: _Line, line: _Line, kind: Kind, *, gap: bool, by_line: bool) -> bool:
    """Return whether `line`, of `kind`, starts a block and does not continue `current`."""
    if kind is Kind.LIST and current.kind is Kind.LIST:
        return False
    if gap or kind is Kind.HEADING or _STEP_LABEL.match(line.text):
        return True
    continues = line.text.lstrip()[:1].islower() and not _ENDED.search(before.text.rstrip())
    if current.kind is Kind.LIST:
        return not continues
    running = (Kind.PROSE, Kind.DISPLAY)
    if kind not in running or current.kind not in running:
        return kind is not current.kind
    return by_line and not continues


def _split_outline(unit: Block) -> list[Block]:
    """Mark a list or table as not to be split; split a list that is an outline into its top-level items."""
    if unit.kind is Kind.LIST and unit.items:
        least = min(indent for _, indent in unit.items)
        tops = [start for start, indent in unit.items if indent < least + 2]
        ends = [*tops[1:], unit.end]
        set_apart = unit.loose and max(end - start for start, end in zip(tops, ends, strict=True)) > MAX_LOOSE_ITEM
        if set_apart or unit.end - unit.start > MAX_LIST:
            tops[0] = unit.start
            return [Block(start, end, Kind.LIST, [(start, end)]) for start, end in zip(tops, ends, strict=True)]
    if unit.kind in (Kind.LIST, Kind.TABLE):
        unit.whole.append((unit.start, unit.end))
    return [unit]


def _join_lead_ins(text: str, units: list[Block]) -> list[Block]:
    joined: list[Block] = []
    for unit in units:
        if joined and unit.end - joined[-1].start <= MAX_JOINED and _announces(text, joined[-1], unit):
            last = joined[-1]
            last.end, last.kind = unit.end, unit.kind
            last.whole.extend(unit.whole)
        else:
            joined.append(unit)
    return joined


def _announces(text: str, block: Block, following: Block) -> bool:
    tail = text[max(block.start, block.end - 80) : block.end].rstrip()
    if block.kind is Kind.HEADING or _LEAD_IN.search(tail):
        return True
    if _ENDED.search(tail) or block.kind not in (Kind.PROSE, Kind.DISPLAY):
        return False
    return following.kind is Kind.DISPLAY or bool(_CONTINUES.match(text, following.start))
