"""The length of a text in words, for English and Chinese alike."""

from __future__ import annotations

import re

_WORD = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff]|[^\s\u3400-\u4dbf\u4e00-\u9fff]+")


def count_words(text: str) -> int:
    """Count runs of characters without white space; each Chinese character counts as one word."""
    return sum(1 for _ in _WORD.finditer(text))
