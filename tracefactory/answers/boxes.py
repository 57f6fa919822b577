"""Find boxed answers in LaTeX: brace-matched, nested, several, unclosed or without braces."""

from __future__ import annotations

import re
from dataclasses import dataclass

_BOX = re.compile(r"\\?\\(?:boxed|fbox|framebox)(?![a-zA-Z])\s*|(?<![\\a-zA-Z])boxed(?=\{)")
_BARE = re.compile(r"[-+]?\d+(?:[.,]\d+)*(?:/\d+)?|[A-Za-z](?![A-Za-z])|\\[a-zA-Z]+")
_BETWEEN = re.compile(
    r"(?:[\s$,;.&]|\\[()\[\],;:! ]|\\\\|\\q?quad|\\text(?:rm|bf)?\s*\{\s*(?:,?\s*(?:and|or)\s*,?)?\s*\}|"
    r"\b(?:and|or)\b|和|或|、|，|；|"
    r"[A-Za-z](?:_\{?\w+\}?)?\s*=|[-*#]|\(?(?:[a-h]|[iv]{1,3}|\d)[).]|(?:part|第)\s*\(?\w\)?:?)*"
)
_KEPT = 40
_UNCLOSED_REACH = 300


@dataclass(frozen=True)
class Box:
    """One box: `start` and `end` of the whole command, and the range of its content."""

    start: int
    end: int
    inner_start: int
    inner_end: int
    text: str
    closed: bool


def find_boxes(text: str) -> list[Box]:
    """Return the last non-empty boxes of a text in order; nested boxes count once, with the innermost content."""
    found: list[Box] = []
    for match in list(_BOX.finditer(text))[-_KEPT:]:
        box = _read(text, match)
        if box is None or not box.text.strip():
            continue
        if found and box.start < found[-1].inner_end and text[found[-1].inner_start : box.start].strip(" $\n") == "":
            outer = found.pop()  # \boxed{\boxed{5}}
            box = Box(outer.start, outer.end, box.inner_start, box.inner_end, box.text, box.closed)
        found.append(box)
    return found


def _read(text: str, match: re.Match[str]) -> Box | None:
    start = match.end()
    if text.startswith("[", start) and "framebox" in match[0]:
        start = text.find("]", start) + 1
    if not text.startswith("{", start):
        bare = _BARE.match(text, start)
        if bare is None:
            return None
        return Box(match.start(), bare.end(), start, bare.end(), bare[0], closed=True)
    level, position = 0, start
    while position < len(text):
        sign = text[position]
        if sign == "\\":
            position += 2
            continue
        level += (sign == "{") - (sign == "}")
        if level == 0:
            return Box(match.start(), position + 1, start + 1, position, text[start + 1 : position], closed=True)
        position += 1
    return _unclosed(text, match, start + 1)


def _unclosed(text: str, match: re.Match[str], start: int) -> Box | None:
    """Parse a box whose brace is never closed, up to the end of its line or of its formula."""
    end = re.compile(r"\n|\$|\\\]|\\\)|\\end|(?<!\d)\.\s|$").search(text, start)
    stop = end.start() if end else len(text)
    if stop - start > _UNCLOSED_REACH:
        return None
    inner = text[start:stop].rstrip()
    return Box(match.start(), start + len(inner), start, start + len(inner), inner.rstrip(".,"), closed=False)


def adjacent_boxes(text: str, boxes: list[Box]) -> list[Box]:
    """Return the group of adjacent boxes that ends with the last one, in order.

    Args:
        text: the text.
        boxes: its boxes, at least one.
    """
    group = [boxes[-1]]
    for box in reversed(boxes[:-1]):
        if _BETWEEN.fullmatch(text, box.end, group[0].start) is None:
            break
        group.insert(0, box)
    return group
