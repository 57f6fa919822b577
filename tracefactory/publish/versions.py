"""The order of versions, which decides whether a release becomes the main branch of its repository."""

from __future__ import annotations

import re

_PARTS = re.compile(r"[0-9]+|[a-z]+")
# Words of pre-releases; the shortened ones only before a number, because 1.0b alone may be the correction of 1.0.
# `--limit` makes versions such as 1.0-limit5, which are trials of 1.0.
_PRE_RELEASES = {"dev": 0, "limit": 0, "alpha": 1, "beta": 2, "pre": 3, "preview": 3, "rc": 3}
_SHORTENED = {"a": 1, "b": 2, "c": 3}
_PRE_RELEASE, _END, _WORD, _NUMBER = range(4)


def version_order(version: str) -> tuple[tuple[int, int, str], ...]:
    """Return a key that sorts versions: 1.9 < 1.10-limit5 < 1.10rc1 < 1.10 < 1.10b < 1.10.1 < 1.11.

    Numbers are compared as numbers, words as text. A pre-release is before its release, any other suffix after it.

    Args:
        version: letters, digits and `. _ + -`.
    """
    parts = _PARTS.findall(re.sub(r"^v(?=[0-9])", "", version.lower()))
    key: list[tuple[int, int, str]] = []
    for part, following in zip(parts, [*parts[1:], ""], strict=True):
        if part.isdigit():
            digits = part.lstrip("0")  # compared by length first, because Python converts only so many digits
            key.append((_NUMBER, len(digits), digits))
        elif part in _PRE_RELEASES or (part in _SHORTENED and following.isdigit()):
            key.append((_PRE_RELEASE, {**_PRE_RELEASES, **_SHORTENED}[part], ""))
        else:
            key.append((_WORD, 0, part))
    return (*key, (_END, 0, ""))
