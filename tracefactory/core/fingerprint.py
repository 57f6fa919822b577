"""Digests of values: sha256 of canonical JSON. Values without one unambiguous encoding raise an error."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable
from enum import Enum
from functools import lru_cache
from pathlib import Path
from typing import Any

import orjson


def canonical(value: Any) -> str:
    """Return the canonical JSON text of a value: sorted keys, no spaces, no NaN, string keys only.

    Raises:
        TypeError: for values other than None, bool, int, float, str, list, tuple and dict with string keys.
        ValueError: for NaN and infinities.
    """
    return _encoded(value).decode("utf-8", "surrogatepass")


def digest(value: Any) -> str:
    """Return the sha256 hex digest (64 characters) of the canonical JSON of a value.

    Raises:
        TypeError, ValueError: as `canonical`.
    """
    return hashlib.sha256(_encoded(value)).hexdigest()


def digest_all(parts: Iterable[str]) -> str:
    """Return the sha256 hex digest of a sequence of strings, which are encoded one at a time with their lengths."""
    running = hashlib.sha256()
    for part in parts:
        data = part.encode("utf-8", "surrogatepass")
        running.update(len(data).to_bytes(8, "big"))
        running.update(data)
    return running.hexdigest()


def digest_file(path: Path) -> str:
    """Return the sha256 hex digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_weights(path: Path) -> str:
    """Return `digest_file` of a large file, which is read again only when its size or time has changed."""
    stat = path.stat()
    return _digest_of_state(path, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=1024)
def _digest_of_state(path: Path, size: int, mtime_ns: int) -> str:
    return digest_file(path)


_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
_PLAIN = frozenset({type(None), bool, int, str})


def _encoded(value: Any) -> bytes:
    """Return the canonical JSON in UTF-8. orjson, ten times faster, is used where it writes the same text as `json`."""
    if _is_common(value):
        try:
            return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)
        except orjson.JSONEncodeError:  # half a surrogate pair, a number of more than 64 bits
            pass
    return _ENCODER.encode(value).encode("utf-8", "surrogatepass")


def _is_common(value: Any) -> bool:
    """Tell whether orjson and `json` write the same text for a value. They differ for very large and small floats.

    Raises:
        TypeError, ValueError: for a value without a canonical form.
    """
    if isinstance(value, dict):
        common = True
        for key, item in value.items():
            if not isinstance(key, str):
                raise TypeError(f"key {key!r} is not a string")
            if type(item) not in _PLAIN:  # saves one call for most values
                common = _is_common(item) and common
        return common
    if isinstance(value, (list, tuple)):
        return all([type(item) in _PLAIN or _is_common(item) for item in value])  # noqa: C419  # a list is faster
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{value} has no canonical form")
        return value == 0 or 1e-4 <= abs(value) < 1e16
    if not isinstance(value, (bool, int, str, type(None))):
        raise TypeError(f"{type(value).__name__} has no canonical form")
    return not isinstance(value, Enum)
