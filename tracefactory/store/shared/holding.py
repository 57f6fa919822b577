"""Holding back requests while completions cannot be put into the shared state, which one process does for all workers.

requests/shared-<digest>/hold-<process>   why; it counts while its process lives, which holds a lock on it
"""

from __future__ import annotations

import fcntl
from pathlib import Path

from tracefactory.core.files import write_text
from tracefactory.store.leases import is_locked


class Holding:
    """What one process has to say; `path` is a file of its own."""

    def __init__(self, path: Path) -> None:
        self._reason = path.with_suffix(".txt")
        self._path = path
        self._file = path.open("x")
        fcntl.flock(self._file, fcntl.LOCK_EX)

    def begin(self, why: str) -> None:
        """Hold back requests, with one sentence for the user."""
        write_text(self._reason, why)

    def end(self) -> None:
        """Let requests be sent."""
        self._reason.unlink(missing_ok=True)

    def close(self) -> None:
        """Let requests be sent, and remove the file."""
        self.end()
        self._path.unlink(missing_ok=True)
        self._file.close()


def why_held(requests: Path) -> str:
    """Return why no request may be sent now; empty if nothing holds it back.

    Args:
        requests: the folder of the request store.
    """
    for reason in requests.glob("shared-*/hold-*.txt"):
        if is_locked(reason.with_suffix("")):
            try:
                return reason.read_text(encoding="utf-8")
            except FileNotFoundError:  # it has just ended
                continue
    return ""
