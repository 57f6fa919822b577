"""Whether a process of another host still renews a file, told without comparing the clocks of two machines.

The time stamp of a file is that of the file server or of the host that wrote it, and neither clock needs to agree with
the one of this host. So the stamp is only compared with itself: a file has stopped being renewed when it did not change
for some seconds of this process's own monotonic clock, while it was watched.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import NamedTuple


class _Stamp(NamedTuple):
    """What every renewal of a file changes."""

    modified_ns: int
    size: int
    inode: int


class Heartbeats:
    """Watches files that other processes renew. Threads may share it."""

    def __init__(self) -> None:
        self._seen: dict[Path, tuple[_Stamp, float]] = {}

    def silent_s(self, path: Path) -> float:
        """Return for how many seconds a file has not changed while it was watched; 0 at the first look.

        Raises:
            FileNotFoundError: when there is no such file.
        """
        # An NFS client may serve attributes from a cache for a minute, but asks the server when the file is opened.
        descriptor = os.open(path, os.O_RDONLY)
        try:
            found = os.fstat(descriptor)
        finally:
            os.close(descriptor)
        stamp, now = _Stamp(found.st_mtime_ns, found.st_size, found.st_ino), time.monotonic()
        before, since = self._seen.get(path, (None, now))
        if stamp != before:
            self._seen[path], since = (stamp, now), now
        return now - since

    def forget(self, path: Path) -> None:
        """Stop watching a file."""
        self._seen.pop(path, None)
