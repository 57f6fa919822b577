"""Count the words of English and Chinese texts."""

from __future__ import annotations

import re

_WORD = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff]|[^\s\u3400-\u4dbf\u4e00-\u9fff]+")


def count_words(text: str) -> int:
    """Return the number of words: runs of characters without white space, and single Chinese characters."""
    return sum(1 for _ in _WORD.finditer(text))
