"""Split mathematics at separators outside all brackets."""

from __future__ import annotations

import re

_OPEN, _CLOSE = "([{", ")]}"
_GROUPED = re.compile(r"-?\d{1,3}(?:,\d{3})+(?:\.\d+)?")


def split_top(text: str, separator: re.Pattern[str]) -> list[str]:
    """Split at the separators outside all brackets, including outward brackets as in `]0,1[`."""
    level, start, pieces, position = 0, 0, [], 0
    while position < len(text):
        sign = text[position]
        if sign == "\\" and text[position : position + 2] not in (r"\{", r"\}"):
            match = separator.match(text, position)
            command = re.compile(r"\\(?:begin|end|langle|rangle)?").match(text, position)
            if command and len(command[0]) > 1:
                level += 1 if command[0] in (r"\begin", r"\langle") else -1
                position = command.end()
                continue
            if match is None or level:
                position += 2
                continue
        elif sign in _OPEN:
            level += 1
        elif sign in _CLOSE:
            level -= 1
        match = separator.match(text, position) if level <= 0 else None
        if match and match.end() > match.start() and not _inside_token(text, match):
            pieces.append(text[start : match.start()])
            start = position = match.end()
            continue
        position += 1
    pieces.append(text[start:])
    return pieces


def _inside_token(text: str, match: re.Match[str]) -> bool:
    """Return whether a match is a comma inside a number such as 1,000, or letters inside a word."""
    if match[0] == ",":
        return any(found.start() < match.start() < found.end() for found in _GROUPED.finditer(text))
    word = match[0].strip(" ,;")
    return (
        word.isascii()
        and word.isalpha()
        and match.start() > 0
        and text[match.start() - 1].isalpha()
        and match[0][0].isalpha()
    )


def balanced(text: str) -> bool:
    """Return whether every bracket is closed; the two of a pair may differ in shape, as in `[0, 1)`."""
    level = 0
    for sign in text:
        if sign in _OPEN:
            level += 1
        elif sign in _CLOSE:
            level -= 1
            if level < 0:
                return False
    return level == 0
