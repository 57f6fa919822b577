"""Find formulas in running text: LaTeX between dollar signs or brackets, without taking prices for formulas."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator
from functools import lru_cache

FORMULA = re.compile(
    r"\$\$(?P<display>.+?)\$\$"
    r"|(?<![\\$])\$(?!\s*\d[\d,.]*\s+[a-z]{2})(?P<dollar>(?=\S)(?:[^$\n\\]|\\.)*?(?<=\S)|\s(?:[^$\n\\]|\\.)+?\s)\$(?!\d)"
    r"|\\\((?P<round>(?!\\\))(?:[^\\]|\\(?![()]))++)\\\)|\\\[(?P<square>(?!\\\])(?:[^\\]|\\(?![\[\]]))++)\\\]"
    r"|\\begin\{(?P<env>align|aligned|equation|gather|gathered|split|multline)(?P<star>\*?)\}(?P<rows>.{1,2000}?)\\end\{(?P=env)(?P=star)\}",
    re.DOTALL,
)
"""A formula. As in Pandoc (extension `tex_math_dollars`), a dollar sign opens one only before a character that is no
space, and closes one only after such a character and not before a digit, so `$765/3 = $255` has two prices. Formulas
in brackets do not contain others, and an environment has at most 2000 characters, so that unclosed ones cost little."""
_CONTENT = ("display", "dollar", "round", "square", "rows")
_TOO_FAR = 2000


def formulas(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Yield the range of the content of each formula in a range.

    Args:
        text: the text.
        start: the first character.
        end: the end of the range.
    """
    yield from _ranges(text, start, end)


@lru_cache(maxsize=16)
def _ranges(text: str, start: int, end: int) -> tuple[tuple[int, int], ...]:
    # kept, because each verb and number of a sentence is looked up in the formulas of the sentence
    return tuple(
        next(match.span(name) for name in _CONTENT if match[name] is not None)
        for match in FORMULA.finditer(text, start, end)
        if match.end() - match.start() <= _TOO_FAR
    )


def inside_formula(text: str, start: int, end: int, position: int) -> bool:
    """Return whether a position is inside of a formula of a range."""
    ranges = _ranges(text, start, end)
    index = bisect_right(ranges, position, key=lambda one: one[0]) - 1
    return index >= 0 and position < ranges[index][1]


_OPEN_END = re.compile(r"(?:[-+*/×÷·^_=<>(\[{,&]|\\(?:times|cdot|div|pm|le|ge|ne|approx|frac|sqrt|left|in|to))\s*$")
_NO_START = re.compile(r"^(?:[*/×÷·^_)\]}&]|\\(?:times|cdot|div|right)(?![a-zA-Z]))")


def complete(piece: str) -> bool:
    """Return whether a value is complete: it neither starts nor ends with an operator, and its brackets are closed.

    Round and square brackets may close each other, because half-open intervals are written so.
    """
    piece = piece.strip().strip("$").strip()
    square = re.fullmatch(r"\][^\[\]]+[\[\]]|[\[\]][^\[\]]+\[", piece) is not None  # the interval ]0, 1[ of ISO 80000-2
    if not piece or (_OPEN_END.search(piece) and not square) or _NO_START.match(piece):
        return False
    depth = {"(": 0, "{": 0}
    for sign in re.sub(r"\\(?:left|right)\s*[.|]?|\\[\\{}]", "", piece):
        kind = {"[": "(", "]": "(", "(": "(", ")": "(", "{": "{", "}": "{"}.get(sign)
        if kind is None or (square and sign in "[]"):
            continue
        depth[kind] += 1 if sign in "([{" else -1
        if depth[kind] < 0:
            return False
    return not any(depth.values())
