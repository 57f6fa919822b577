"""The trained students in a state folder: which there are, and what training them again would take.

`tracefactory.teaching` makes them (see `teaching.students` and `teaching.job`); a garbage collection lists them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from tracefactory.store.leases import is_locked

TEACHING, ANSWERS = "teaching", "answers"
RECORD, LOG = "record.json", "log.txt"
KEY_DIGITS = 16
_TRAINING = re.compile(rf"[0-9a-f]{{{KEY_DIGITS}}}")
HUB = "hub"
_COPIES = {
    "rows": "rows of trainings in the student's tokens, encoded again from their datasets",
    "untouched-*": "the untouched student as a folder, converted again from its GGUF file",
    "gguf": "weights for llama.cpp, converted again from their student",
    HUB: "releases of the Hub, fetched again from there",
}
"""Folders of what comparisons keep beside trainings and answers, and how it comes back."""


class StoredTraining(NamedTuple):
    """One training: its folder, whether its answers are stored, and its seconds, None of one that is not finished."""

    folder: Path
    answered: bool
    seconds: float | None


def stored_trainings(root: Path) -> Iterator[StoredTraining]:
    """Yield the trainings in a state folder, by their keys.

    Args:
        root: the folder of the project's state.
    """
    answered = {str(_fields(file).get("student"))[:KEY_DIGITS] for file in (root / TEACHING / ANSWERS).glob("*.json")}
    for folder in sorted((root / TEACHING).glob("*")):
        if _TRAINING.fullmatch(folder.name) and folder.is_dir() and not folder.is_symlink():
            seconds = _fields(folder / RECORD).get("seconds")
            yield StoredTraining(folder, folder.name in answered, seconds if isinstance(seconds, float) else None)


def stored_copies(root: Path) -> Iterator[tuple[Path, str]]:
    """Yield the folders of what comparisons make again when they need it, each with how.

    Args:
        root: the folder of the project's state.
    """
    for pattern, how in _COPIES.items():
        for folder in sorted((root / TEACHING).glob(pattern)):
            if folder.is_dir() and not folder.is_symlink() and any(folder.iterdir()):
                yield folder, how


def is_training(folder: Path) -> bool:
    """Return whether a process of this host trains in the folder of a training."""
    return is_locked(folder / LOG)


def _fields(file: Path) -> dict[str, Any]:
    """Return the fields of a JSON file, none of a missing or damaged one."""
    with suppress(OSError, ValueError):
        found = orjson.loads(file.read_bytes())
        if isinstance(found, dict):
            return found
    return {}
