"""Shorten long runs of white space and punctuation in a text, and find places of the short text in the long one.

Patterns with adjacent repetitions (`\\s*[:=]?\\s*`) take quadratic or cubic time on long runs, which mean nothing.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from dataclasses import dataclass

KEPT = 12
"""Characters of a run that are kept: half of them from its start, half from its end."""

_RUN = re.compile(r"[\s\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]{13,}|([^\w\s{}()\[\]\\$\"])\1{12,}")


@dataclass(frozen=True)
class Shortened:
    """A text without long runs; at each of `cuts`, places of this text, so many characters in all are `removed`."""

    text: str
    cuts: tuple[int, ...] = ()
    removed: tuple[int, ...] = ()

    def place(self, position: int) -> int:
        """Return the place in the long text of a position in the short one."""
        index = bisect_right(self.cuts, position)
        return position + (self.removed[index - 1] if index else 0)


def shorten(text: str) -> Shortened:
    """Return a text with its long runs shortened. The time is linear in its length."""
    pieces: list[str] = []
    cuts: list[int] = []
    removed: list[int] = []
    last = length = missing = 0
    for match in _RUN.finditer(text):
        first, end = match.start() + KEPT // 2, match.end() - KEPT // 2
        pieces.append(text[last:first])
        length += first - last
        missing += end - first
        cuts.append(length)
        removed.append(missing)
        last = end
    if not cuts:
        return Shortened(text)
    pieces.append(text[last:])
    return Shortened("".join(pieces), tuple(cuts), tuple(removed))
