"""Find the starts of sentences, in English and Chinese, outside ranges that must not be split."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

# The look-behind prevents a search at every character of a run of dots; looping traces have thousands of them.
_END = re.compile(
    r"(?<![.!?…])[.!?…]++[\"'”’)\]*_]*+(?=\s)|(?<![。！？；])[。！？；]++[”’」』）\"*_]*+|(?<=\S)[ \t]*+\n(?=\s*+\S)"
)
_ABBREVIATION = re.compile(
    r"(?:\b(?:e\.g|i\.e|etc|vs|cf|resp|approx|eqn?s?|figs?|sec|thm|prop|lem|no|nos|pp?|dr|mrs?|ms|prof|st|al|vol|ch)"
    r"|(?:^|\n)[ \t>*]*\(?(?:\d{1,3}|[a-zA-Z]))\.$",
    re.I,
)
_LINE_ENDED = re.compile(r"[.!?。！？;；…][\"'”’」』)\]）*_]*$")


def sentence_starts(text: str, start: int, end: int, whole: Iterable[tuple[int, int]]) -> Iterator[int]:
    """Yield the starts of the sentences in a part of a text, except the first.

    White space belongs to the sentence before it. Sentences do not start with a lower-case letter, so that
    abbreviations and variables do not end a sentence.

    Args:
        text: the text.
        start: the start of the part.
        end: the end of the part.
        whole: sorted disjoint ranges; no sentence starts strictly inside one of them.
    """
    ranges, last = iter(whole), start
    current = next(ranges, None)
    for match in _END.finditer(text, start, end):
        at = match.end()
        while at < end and text[at].isspace():
            at += 1
        while current and current[1] <= at:
            current = next(ranges, None)
        if at >= end or (current and current[0] < at):
            continue
        if at > last and _begins(text, match, at):
            last = at
            yield at


def _begins(text: str, match: re.Match[str], at: int) -> bool:
    tail = text[max(0, match.end() - 16) : match.end()]
    if text[match.start()] in "。！？；":
        return True
    if match.group().endswith("\n"):
        return bool(_LINE_ENDED.search(tail.rstrip())) and not text[at].islower()
    return not text[at].islower() and not _ABBREVIATION.search(tail)
