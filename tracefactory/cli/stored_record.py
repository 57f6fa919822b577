"""`tracefactory explain REQUEST_KEY`: a record of the request store as it is stored, also when it cannot be used."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from tracefactory.core.errors import UserError
from tracefactory.core.model import RequestFailed
from tracefactory.engine.stored import usable
from tracefactory.store.requests import RequestStore

_KEY = re.compile("[0-9a-f]{12,64}")
_MOST_CHARS = 20_000  # of a record that is printed


def find_record(prefix: str, root: Path) -> tuple[str, Any] | None:
    """Return the key and the stored record of a request; None when `prefix` is the beginning of none.

    Args:
        prefix: the key of a request, or at least its first 12 digits.
        root: the state folder.

    Raises:
        UserError: when it is the beginning of several keys.
    """
    if not _KEY.fullmatch(prefix):
        return None
    found = RequestStore(root).find(prefix)
    if len(found) > 1:
        raise UserError(f"{len(found)} request keys begin with {prefix!r}: {', '.join(sorted(found)[:5])}; give more")
    return next(iter(found.items()), None)


def record_text(key: str, record: Any, *, whole: bool = False) -> str:
    """Return a stored record as JSON for people, with a line that says whether stages can use it.

    Args:
        key: the key of the request.
        record: what is stored.
        whole: whether a long record is not cut, and nothing is written around it.
    """
    text = json.dumps(record, indent=2, ensure_ascii=False)
    # No character of a model's text may steer the terminal.
    text = "".join(char if char == "\n" or char.isprintable() else f"\\u{ord(char):04x}" for char in text)
    if whole:
        return text
    answer = usable(key, record)
    state = answer.message.partition(";")[0] if isinstance(answer, RequestFailed) else "the stages can use it"
    left = len(text) - _MOST_CHARS
    cut = f"{text[:_MOST_CHARS]}\n... and {left:,} more characters; --json prints all" if left > 0 else text
    return f"request {key}: {state}\n{cut}"
