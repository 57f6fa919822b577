"""What may be deleted from a state folder, and how: stages, runs, leftovers of killed writes, doubled segments.

A stage is deleted under its lease, and only if no run that goes on has it in its plan. A run locks its `alive` file
before it reads what is stored, and `delete_stage` takes the stage's record away before it looks at these locks. So
either the run finds no record and makes the stage again, or it is found here and the record is put back.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple
from uuid import uuid4

import numpy as np
import orjson

from tracefactory.core.files import TEMPORARY, sync_folder
from tracefactory.store.leases import Lease, is_locked
from tracefactory.store.segments import V1_PREFIX, Segment
from tracefactory.store.stages import folder_name
from tracefactory.store.trainings import TEACHING

SETTLED_S = 60.0
"""Commands that fetch from a shared state write a file within so many seconds."""
OLD_S = 24 * 3600.0
"""While a run goes on, a temporary file is taken to be a leftover after so many seconds without a change."""
_ASIDE = f"{TEMPORARY}gc-record.json"


class Size(NamedTuple):
    """Numbers of files and bytes."""

    files: int = 0
    bytes: int = 0

    def plus(self, other: Size) -> Size:
        return Size(self.files + other.files, self.bytes + other.bytes)


class Planned(NamedTuple):
    """What the plan of a run says: the version to publish, and the folders of its stages by id."""

    version: str
    stages: Mapping[str, str]


def size_of(path: Path) -> Size:
    """Return the files and bytes of a file, or of a folder with everything in it; links are not followed."""
    with suppress(FileNotFoundError):
        if path.is_symlink() or not path.is_dir():
            return Size(1, path.lstat().st_size)
        total = Size()
        for entry in os.scandir(path):
            total = total.plus(size_of(Path(entry.path)))
        return total
    return Size()  # deleted in the meantime


def live_runs(root: Path) -> list[str]:
    """Return the runs that have a process on this host, or on a file system that shares its locks."""
    return [path.parent.name for path in sorted((root / "runs").glob("*/alive")) if is_locked(path)]


def plan_of(root: Path, run: str) -> Planned | None:
    """Return what the plan of a run says, None where it is not written yet.

    Raises:
        ValueError: when the plan is damaged.
    """
    path = root / "runs" / run / "plan.json"
    try:
        plan = orjson.loads(path.read_bytes())
        return Planned(str(plan["version"]), {one["id"]: folder_name(one["id"], one["key"]) for one in plan["stages"]})
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not the plan of a run") from error


def used_by_a_run(root: Path, folder: str) -> str:
    """Return why a run that goes on may need the folder of a stage, "" if none does."""
    for run in live_runs(root):
        try:
            plan = plan_of(root, run)
        except ValueError as error:
            return f"run {run} goes on, and {error}"
        if plan is None:
            return f"run {run} is starting"
        if folder in plan.stages.values():
            return f"run {run} goes on and has it in its plan"
    return ""


async def delete_stage(root: Path, folder: Path) -> str:
    """Delete the folder of a stage unless somebody uses it, and return why it was left, "" if it is gone.

    The record goes first, then what marks a shard as done, then the rows: at every moment the rest is a stage that the
    next run completes.
    """
    try:
        async with Lease(root, folder, f"gc-{uuid4().hex}", _refuse):
            return _delete_held(root, folder)
    except _Held as held:
        return str(held)


def _delete_held(root: Path, folder: Path) -> str:
    """Delete the folder of a stage whose lease is held, and return why it was left, "" if it is gone."""
    record, aside = folder / "record.json", folder / _ASIDE
    with suppress(FileNotFoundError):
        os.replace(record, aside)
        sync_folder(folder)
    if why := used_by_a_run(root, folder.name):
        with suppress(FileNotFoundError):
            os.replace(aside, record)
        return why
    for name in sorted((path.name for path in folder.iterdir()), key=_deleted_in_order):
        _remove(folder / name)
    with suppress(OSError):  # what another process has written into it meanwhile stays
        folder.rmdir()
    sync_folder(folder.parent)
    return ""


def _deleted_in_order(name: str) -> tuple[int, str]:
    order = [name == _ASIDE, name.startswith("judged-"), name.endswith(".parquet"), name != "lease.json"]
    return (order.index(True) if True in order else len(order)), name


class _Held(Exception):  # noqa: N818
    """Somebody else holds the lease of a stage."""


def _refuse(text: str) -> None:
    raise _Held(text.partition(": waiting for ")[2] or text)


def delete(path: Path) -> None:
    """Delete a file, or a folder with everything in it."""
    _remove(path)
    if path.parent.exists():
        sync_folder(path.parent)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def leftovers(root: Path, out: Path, *, settled_s: float = 0.0) -> Iterator[Path]:
    """Yield the temporary files and folders that killed processes have left, in the state folder and in `out`.

    Those of a stage that somebody writes are left out, and while a run goes on, all others that are not old. Those of
    `tracefactory teach`, which writes them between its runs, are always left out if they are not old.

    Args:
        root: the folder of the project's state.
        out: the folder of the releases.
        settled_s: what was changed within so many seconds is left out; other processes than runs may be writing it.
    """
    live = set(live_runs(root))
    for path in _temporary(root):
        if settled_s and _age_s(path) < settled_s:
            continue
        stage = path.relative_to(root).parts[:2]
        if stage[0] == "stages":
            if not is_locked(root.joinpath(*stage, "lease.json")):
                yield path
        elif not (live or stage[0] == TEACHING) or _age_s(path) > OLD_S:
            yield path
    for path in sorted((root / "requests").glob("[!.]*.index")):
        if not live and not path.with_suffix(".parquet").exists():
            yield path
    for path in sorted(out.glob("*/.*.tmp-*")):  # releases that were being written
        if path.name.rpartition(".tmp-")[2] not in live:
            yield path


def _temporary(root: Path) -> Iterator[Path]:
    for folder, folders, files in os.walk(root):
        found = [name for name in (*folders, *files) if name.startswith(TEMPORARY)]
        folders[:] = [name for name in folders if name not in found]
        yield from (Path(folder, name) for name in sorted(found))


def _age_s(path: Path) -> float:
    with suppress(FileNotFoundError):
        return time.time() - path.stat().st_mtime
    return 0.0


def doubled_segments(root: Path) -> list[Path]:
    """Return segments all of whose completions are in other segments as well, as a killed compaction leaves them.

    Every completion that a segment shares with others is read there, so that a damaged copy does not count.
    """
    folder, found = root / "requests", []
    segments: list[Segment] = []
    for path in folder.glob("[!.]*.parquet"):
        if not path.name.startswith(V1_PREFIX):
            segments.append(Segment(path, lambda damage: None, writes=False))
    # Of two equal ones the smaller is given up.
    segments.sort(key=lambda one: (len(one.index.prefixes), one.path.name))
    left = list(segments)
    for one in segments:
        others = [other for other in left if other is not one]
        if len(one.index.prefixes) and _is_in(one, others):
            left = others
            found.append(one.path)
    for one in segments:
        one.close()
    return found


def _is_in(one: Segment, others: Sequence[Segment]) -> bool:
    """Return whether all records of a segment can be read in others."""
    holding = [other.rows_of(one.index.prefixes) for other in others]
    if not holding or not (np.max(holding, axis=0) >= 0).all():
        return False
    own = {key: record for _, key, record in one.whole_rows()}
    if len(own) != len(one.index.prefixes) or one.lost:
        return False
    for other, rows in zip(others, holding, strict=True):
        for _, key, record in other.whole_rows() if (rows >= 0).any() else ():
            if own.get(key) == record:
                del own[key]
    return not own
