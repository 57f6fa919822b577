"""Deletion of the completions of one model, which were paid for: only when a user names the model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from tracefactory.core.errors import RunError
from tracefactory.core.files import whole_file
from tracefactory.store.journals import PREFIX, SUFFIX, Line, read_lines
from tracefactory.store.repair import alone
from tracefactory.store.segments import Segment, write_segment


@dataclass
class Held:
    """The completions of one model: their number, size in bytes of JSON, and cost in US dollars where it is known."""

    completions: int = 0
    size: int = 0
    usd: float = 0.0
    unpriced: int = 0

    def add(self, record: bytes) -> None:
        cost = orjson.loads(record).get("cost")
        self.completions += 1
        self.size += len(record)
        if isinstance(cost, (int, float)):
            self.usd += cost
        else:
            self.unpriced += 1


def completions_by_model(root: Path) -> dict[str, Held]:
    """Read all completions of a state folder, and return what it has of each model.

    Raises:
        RunError: when something is damaged.
    """
    found: dict[str, Held] = {}
    seen: set[int] = set()  # the first 64 bits of keys
    for path in _files(root):
        for key, record in _records(path):
            if (prefix := int(key[:16], 16)) not in seen:
                seen.add(prefix)
                found.setdefault(_model(record), Held()).add(record)
    return found


def discard_completions(root: Path, model: str) -> int:
    """Delete the completions of one model, and return their number. Their requests are owed again.

    What is left of a file is written before the file is deleted.

    Raises:
        UserError: while a run uses the state folder.
        RunError: when something is damaged.
    """
    deleted: set[str] = set()

    def stays(key: str, record: bytes) -> bool:
        if _model(record) != model:
            return True
        deleted.add(key)
        return False

    with alone(root, "delete completions"):
        for path in _files(root):
            if path.suffix == SUFFIX:
                _rewrite_journal(path, stays)
            else:
                _rewrite_segment(path, stays)
    return len(deleted)


def _files(root: Path) -> list[Path]:
    folder = root / "requests"
    return sorted([*folder.glob("[!.]*.parquet"), *folder.glob(f"{PREFIX}*{SUFFIX}")])


def _records(path: Path) -> Iterator[tuple[str, bytes]]:
    if path.suffix == SUFFIX:
        yield from ((line.key, line.record) for line in _lines(path))
        return
    segment = Segment(path, _refuse_damage, writes=False)
    try:
        yield from ((key, record) for _, key, record in segment.whole_rows())
    finally:
        segment.close()


def _lines(path: Path) -> Iterator[Line]:
    for line in read_lines(path, closed=True):
        if not isinstance(line, Line):
            _refuse_damage(f"{path}, byte {line.start}: {line.why}")
        else:
            yield line


def _refuse_damage(damage: Any) -> None:
    raise RunError(f"{damage}; nothing was deleted: `tracefactory fsck --repair` comes first")


def _model(record: bytes) -> str:
    """Return the name of the model that wrote a completion, "" where its record does not tell."""
    request = orjson.loads(record).get("request")
    identity = request.get("model_identity") if isinstance(request, dict) else None
    return str(identity.get("model", "")) if isinstance(identity, dict) else ""


def _rewrite_journal(path: Path, stays: Callable[[str, bytes], bool]) -> None:
    keep = [line for line in _lines(path) if stays(line.key, line.record)]
    if not keep:
        path.unlink()
        return
    with whole_file(path) as temporary, temporary.open("wb") as file, path.open("rb") as source:
        for line in keep:
            source.seek(line.start)
            file.write(source.read(line.length - 1) + b"\n")


def _rewrite_segment(path: Path, stays: Callable[[str, bytes], bool]) -> None:
    segment = Segment(path, _refuse_damage, writes=False)
    try:
        rows = list(segment.whole_rows())
        versions = segment.key_versions
    finally:
        segment.close()
    # They are in the order of their problems; the row keeps it.
    keep = [(f"{row:012d}", key, record) for row, key, record in rows if stays(key, record)]
    if len(keep) < len(rows):
        if keep:
            write_segment(path.parent, keep, versions)
        path.unlink()
        path.with_suffix(".index").unlink(missing_ok=True)
