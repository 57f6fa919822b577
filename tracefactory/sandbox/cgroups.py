"""A control group for one program: a limit on the memory of all its processes together, and on their number.

The memory of a group counts everything: anonymous pages, files in memory, shared memory, pipes. Version 2 of the
kernel's control groups is used where it limits memory, version 1 otherwise (Documentation/admin-guide/cgroup-v2.rst,
cgroup-v1/). A group is made beside the one of this process, or below it, wherever this user may.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import shlex
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

_PREFIX = "tracefactory-"
_log = logging.getLogger(__name__)
_numbers = itertools.count()


@dataclass(frozen=True)
class _Places:
    """The folders in which groups can be made, and their version."""

    memory: Path
    processes: Path
    version: int


class Group:
    """One control group. Close it after its processes have ended."""

    def __init__(self, places: _Places, memory: int, processes: int) -> None:
        name = f"{_PREFIX}{os.getpid()}-{next(_numbers)}"
        self._memory, self._processes = places.memory / name, places.processes / name
        self._version = places.version
        for folder in self._folders():
            folder.mkdir()
        limits = {"memory.max": memory, "memory.swap.max": 0, "pids.max": processes}
        if places.version == 1:
            limits = {"memory.limit_in_bytes": memory, "memory.memsw.limit_in_bytes": memory, "pids.max": processes}
        for file, value in limits.items():
            path = (self._processes if file.startswith("pids") else self._memory) / file
            if path.exists():  # kernels without swap have no limits on it
                path.write_text(str(value))

    def entering(self) -> list[str]:
        """Return the beginning of a command that runs another one in the group."""
        files = [shlex.quote(str(folder / "cgroup.procs")) for folder in self._folders()]
        return ["/bin/sh", "-c", "".join(f"echo $$ > {file} || exit 1; " for file in files) + 'exec "$@"', "sh"]

    def out_of_memory(self) -> bool:
        """Return whether the kernel killed a process of the group because of the limit on memory."""
        file = self._memory / ("memory.oom_control" if self._version == 1 else "memory.events")
        return any(line.split()[0] == "oom_kill" and int(line.split()[1]) for line in file.read_text().splitlines())

    def close(self) -> None:
        """Remove the group; processes that are being killed leave it a moment later."""
        for folder in self._folders():
            for _ in range(200):
                try:
                    folder.rmdir()
                except FileNotFoundError:
                    break
                except OSError:
                    time.sleep(0.005)
                else:
                    break
            else:
                _log.warning("the control group %s is still in use; it is removed by a later run", folder)

    def _folders(self) -> list[Path]:
        return list(dict.fromkeys((self._memory, self._processes)))


def group(memory: int, processes: int) -> Group | None:
    """Return a new group, None where this user can make none.

    Args:
        memory: the limit on memory in bytes.
        processes: the limit on the number of processes and threads.
    """
    places = _places()
    if places is None:
        return None
    try:
        return Group(places, memory, processes)
    except OSError as error:
        _log.warning("no control group for this program: %s", error)
        return None


@lru_cache(maxsize=1)
def _places() -> _Places | None:
    """Return where groups can be made, after trying; remove what killed runs left there."""
    for places in _candidates():
        try:
            for folder in {places.memory, places.processes}:
                _remove_left(folder)
            trial = Group(places, 1 << 30, 64)
        except OSError as error:
            _log.debug("no control groups in %s: %s", places.memory, error)
            continue
        usable = all((one / "cgroup.procs").exists() for one in trial._folders())
        trial.close()
        if usable:
            return places
    return None


def _candidates() -> Iterator[_Places]:
    mounts = _mounts()
    own = {
        controller: path
        for line in Path("/proc/self/cgroup").read_text().splitlines()
        for _, names, path in (line.split(":", 2),)
        for controller in names.split(",")
    }
    if "" in mounts and "" in own:
        here = _below(mounts[""], own[""])
        for place in (here.parent, here):
            with contextlib.suppress(OSError):
                if {"memory", "pids"} <= set((place / "cgroup.subtree_control").read_text().split()):
                    yield _Places(place, place, 2)
    if {"memory", "pids"} <= mounts.keys() & own.keys():
        yield _Places(_below(mounts["memory"], own["memory"]), _below(mounts["pids"], own["pids"]), 1)


def _mounts() -> dict[str, tuple[Path, str]]:
    """Return for each controller, and for "" the unified hierarchy, the mount point and the group that is its root."""
    found: dict[str, tuple[Path, str]] = {}
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        left, _, right = line.partition(" - ")
        kind, _, options = right.split(" ", 2)
        place = Path(left.split()[4]), left.split()[3]
        if kind == "cgroup2":
            found[""] = place
        elif kind == "cgroup":
            found |= dict.fromkeys(options.split(","), place)
    return found


def _below(mount: tuple[Path, str], path: str) -> Path:
    point, root = mount
    return point / path.removeprefix(root).lstrip("/") if root != "/" else point / path.lstrip("/")


def _remove_left(folder: Path) -> None:
    for left in folder.glob(f"{_PREFIX}*-*"):
        pid = left.name.removeprefix(_PREFIX).split("-")[0]
        if pid.isdigit() and not os.path.exists(f"/proc/{pid}"):
            with contextlib.suppress(OSError):  # another run removes it at the same time
                left.rmdir()
