"""Segment a reasoning text into steps; concatenated, the steps are the text.

Most of the literature uses paragraphs separated by blank lines (step entropy, arXiv 2508.03346; ASAP, arXiv
2508.05988); P-ALIGN uses sentences (arXiv 2601.10064). The default is in between: paragraphs, split where a sentence
changes the direction ("Wait", "Let me check", "等等") or states a conclusion, and in long paragraphs.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from itertools import pairwise

from tracefactory.text.steps.blocks import Block, blocks
from tracefactory.text.steps.classify import classify_all, turns
from tracefactory.text.steps.model import Granularity, Step
from tracefactory.text.steps.protect import Span, protected
from tracefactory.text.steps.sentences import sentence_starts

LONG = 600  # characters of prose after which the next sentence starts a step


def segment(text: str, granularity: Granularity = Granularity.STEP) -> tuple[Step, ...]:
    """Split a text into classified steps.

    LaTeX, code, tables and lists are not split, except a list that outlines a solution, between its top-level items.
    The time is linear in the text, also for looping texts.

    Args:
        text: the reasoning text.
        granularity: the size of the steps.

    Returns:
        The steps in order, which cover the text; the empty text has none.
    """
    if not text:
        return ()
    spans = protected(text)
    starts = [0]
    for block in blocks(text, spans):
        if block.start:
            starts.append(block.start)
        if granularity is not Granularity.PARAGRAPH:
            starts.extend(_cuts(text, block, spans, granularity))
    ends = [*starts[1:], len(text)]
    pieces = [text[start:end] for start, end in zip(starts, ends, strict=True)]
    return tuple(
        Step(index=index, start=start, end=end, kind=kind, rule=rule)
        for index, (start, end, (kind, rule)) in enumerate(zip(starts, ends, classify_all(pieces), strict=True))
    )


def _cuts(text: str, block: Block, spans: list[Span], granularity: Granularity) -> Iterator[int]:
    """Yield the starts of the steps inside a block."""
    first = bisect_left(spans, block.start, key=lambda span: span.end)
    last = bisect_left(spans, block.end, key=lambda span: span.start)
    whole = _union([*((span.start, span.end) for span in spans[first:last]), *block.whole])
    step_start = block.start
    for at, end in pairwise([*sentence_starts(text, block.start, block.end, whole), block.end]):
        if granularity is Granularity.SENTENCE or at - step_start >= LONG or turns(text[at:end]):
            step_start = at
            yield at


def _union(ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return the union of ranges as sorted disjoint ranges."""
    merged: list[tuple[int, int]] = []
    for start, end in sorted(ranges):
        if merged and start < merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged
