"""Repair of a damaged state folder: damaged files are set aside, and what can be read of them is written again.

    damaged/<time>/...   the files as they were, under their paths in the state folder; nothing is deleted

Afterwards completions that cannot be read are owed again, and stages with damaged files are made again by the next run
from the completions that are left.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from tracefactory.core.errors import RunError, UserError
from tracefactory.core.files import sync_folder, whole_file
from tracefactory.core.tables import Table
from tracefactory.store.damage import Damage
from tracefactory.store.journals import PREFIX, SUFFIX, Line, closed_journals, read_lines
from tracefactory.store.leases import is_locked
from tracefactory.store.segments import Segment, write_segment
from tracefactory.store.spend import rewrite
from tracefactory.store.stages import PART


def repair(root: Path, damage: Iterable[Damage]) -> Path:
    """Repair the files of the damages that `check` has found, and return the folder of the files that were set aside.

    Raises:
        UserError: while a run uses the state folder.
        RunError: when a file cannot be moved or written.
    """
    aside = root / "damaged" / datetime.now(UTC).strftime("%Y%m%d-%H%M%S-%f")
    with alone(root, "repair the store"):
        for path in dict.fromkeys(one.path for one in damage):
            try:
                _repair(root, path, aside)
            except OSError as error:
                raise RunError(f"{path} could not be repaired: {error}; what was set aside is in {aside}") from error
    return aside


def _repair(root: Path, path: Path, aside: Path) -> None:
    place = path.relative_to(root).parts
    if place[0] == "stages" and len(place) > 2:
        _repair_stage(root, path, aside)
    elif place[0] == "requests" and path.name.startswith(PREFIX) and path.suffix == SUFFIX:
        _repair_journal(path, _copied(root, path, aside))
    elif place[0] == "requests" and path.suffix == ".parquet":
        _repair_segment(root, path, aside)
    elif place[0] == "spend" and path.suffix == ".ledger":
        _copied(root, path, aside)
        rewrite(root, path.stem)
    elif place[0] != "batches":  # without its entry, the requests of a batch would be paid for again
        _move(root, path, aside)


@contextmanager
def alone(root: Path, what: str) -> Iterator[None]:
    """Hold the locks of all journals; `what` is what to do when a run has ended.

    Raises:
        UserError: when a run uses the state folder.
    """
    for alive in sorted((root / "runs").glob("*/alive")):
        if is_locked(alive):
            raise UserError(f"run {alive.parent.name} is going on: {what} when it has ended")
    with closed_journals(root / "requests") as closed:
        if used := set((root / "requests").glob(f"{PREFIX}*{SUFFIX}")) - set(closed):
            raise UserError(f"another process writes to {min(used)}: {what} when it has ended")
        yield


def _repair_journal(path: Path, original: Path) -> None:
    """Write a journal again without its damaged bytes."""
    with whole_file(path) as temporary, temporary.open("wb") as file, original.open("rb") as source:
        for line in read_lines(original, closed=True):
            if isinstance(line, Line):
                source.seek(line.start)
                file.write(source.read(line.length - 1) + b"\n")


def _repair_segment(root: Path, path: Path, aside: Path) -> None:
    """Write the rows of a segment that can be read as a new segment."""
    segment = Segment(path, lambda damage: None, writes=False)
    # They are in the order of their problems; the row keeps it.
    records = [(f"{row:012d}", key, record) for row, key, record in segment.whole_rows()]
    versions = segment.key_versions
    segment.close()
    for one in (path, path.with_suffix(".index")):
        _move(root, one, aside)
    if records:
        write_segment(path.parent, records, versions)


def _repair_stage(root: Path, path: Path, aside: Path) -> None:
    """Set aside a damaged file of a stage, and with it what says that its shard and its stage are done."""
    _move(root, path, aside)
    match = PART.match(path.name)
    if match is not None:
        for table in Table:
            _move(root, path.with_name(f"{table.value}-{match[2]}-of-{match[3]}.parquet"), aside)
    if match is not None or path.name == "identity.json":
        _move(root, path.with_name("record.json"), aside)


def _move(root: Path, path: Path, aside: Path) -> None:
    """Move a file or folder into `aside`, if it is still there."""
    if path.exists():
        target = aside / path.relative_to(root)
        target.parent.mkdir(parents=True, exist_ok=True)
        while target.exists():
            target = target.with_name(f"{target.name}~")
        os.rename(path, target)
        sync_folder(path.parent)


def _copied(root: Path, path: Path, aside: Path) -> Path:
    target = aside / path.relative_to(root)
    with whole_file(target) as temporary:
        shutil.copy2(path, temporary)
    return target
