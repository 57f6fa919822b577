"""Records: JSON files with a checksum of their content. Those of version 0.2 and earlier have no checksum."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tracefactory.core.errors import RunError
from tracefactory.core.files import write_json
from tracefactory.store.damage import Damage

CHECKSUM = "checksum"


def write_record(path: Path, content: Mapping[str, Any]) -> None:
    """Write a record atomically."""
    write_json(path, with_checksum(content))


def read_record(path: Path, consequence: str, met: Callable[[Damage], None]) -> dict[str, Any] | None:
    """Return the content of a record, None when there is none or when it is damaged.

    Args:
        path: the file.
        consequence: what it means for the next run when the record is damaged.
        met: is told the damage.

    Raises:
        RunError: when the operating system refuses to read it.
    """
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error.strerror}") from error
    try:
        return checked(raw)
    except json.JSONDecodeError as error:
        met(Damage(path, f"line {error.lineno}, column {error.colno}", f"not JSON ({error.msg})", consequence))
    except UnicodeDecodeError as error:
        met(Damage(path, f"byte {error.start}", "not UTF-8", consequence))
    except ValueError as error:
        met(Damage(path, "the whole file", str(error), consequence))
    return None


def with_checksum(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record with its checksum."""
    return {**content, CHECKSUM: _checksum(content)}


def checked(raw: bytes) -> dict[str, Any]:
    """Return the content of a record without its checksum.

    Raises:
        ValueError: when it is damaged.
    """
    content = json.loads(raw.decode())
    if not isinstance(content, dict):
        raise ValueError("not a record")
    checksum = content.pop(CHECKSUM, None)
    if checksum is not None and checksum != _checksum(content):
        raise ValueError("wrong checksum")
    return content


def _checksum(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
