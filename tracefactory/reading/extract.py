"""Extract the answer from a field, in the formats of published problem sets."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Literal

AnswerFrom = Literal["field", "gsm8k", "boxed", "last_line", "without_unit"]

_BOX = re.compile(r"\\(?:boxed|fbox)(?![a-zA-Z])\s*")
_UNIT = re.compile(r"\([^()]*\)$")
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")


def gsm8k(text: str) -> str | None:
    """Return the text after the last `####`, without thousands separators (GSM8K, Cobbe et al., arXiv:2110.14168)."""
    _, marker, answer = text.rpartition("####")
    return _THOUSANDS.sub("", answer.strip()) or None if marker else None


def boxed(text: str) -> str | None:
    r"""Return the content of the last `\boxed{...}`, braces matched (MATH, Hendrycks et al. 2021, arXiv:2103.03874).

    For `\boxed 5`, which MATH has too, it is the next token. An unclosed last box gives no answer.
    """
    boxes = list(_BOX.finditer(text))
    if not boxes:
        return None
    start = boxes[-1].end()
    if text[start : start + 1] != "{":
        token = re.match(r"\\[a-zA-Z]+|[^\s$]+", text[start:])
        return token[0] if token else None
    depth, place = 0, start
    while place < len(text):
        character = text[place]
        if character == "\\":
            place += 2  # an escaped brace is text
            continue
        depth += (character == "{") - (character == "}")
        if depth == 0:
            return text[start + 1 : place].strip() or None
        place += 1
    return None


def last_line(text: str) -> str | None:
    """Return the last line that is not blank."""
    lines = text.strip().splitlines()
    return lines[-1].strip() if lines else None


def without_unit(text: str) -> str | None:
    """Return the text without a trailing unit in parentheses: "9 (apples)" gives 9 (ASDiv, Miao et al. 2020)."""
    return _UNIT.sub("", text.strip()).strip() or None


def whole(text: str) -> str | None:
    """Return the field, stripped."""
    return text.strip() or None


EXTRACTORS: Mapping[AnswerFrom, Callable[[str], str | None]] = MappingProxyType(
    {"field": whole, "gsm8k": gsm8k, "boxed": boxed, "last_line": last_line, "without_unit": without_unit}
)
