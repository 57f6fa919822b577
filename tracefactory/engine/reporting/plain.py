"""The progress of a run as plain lines, for a file or the log of a scheduler."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

QUIET_S = 20.0
"""After so long without a line, one says what is waited for; it is looked at every 10 s, so one comes every 30 s."""


class PlainLines:
    """Prints the line of a stage when it changes, and what is waited for when none does.

    Args:
        say: prints one line.
        clock: returns seconds.
    """

    def __init__(self, say: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._say, self._clock = say, clock
        self._since: dict[str, tuple[str, str]] = {}  # the line of every stage, and the time of day of its change
        self._last, self._changed = clock(), time.strftime("%H:%M:%S")

    def show(self, lines: Iterable[tuple[str, str, bool]]) -> None:
        """Print what is new.

        Args:
            lines: the id of every stage, its line, empty as long as it has not begun, and whether it is done.
        """
        now, going_on = self._clock(), []
        for stage, line, done in lines:
            if not line:
                continue
            if self._since.get(stage, ("", ""))[0] != line:
                self._changed = time.strftime("%H:%M:%S")
                self._since[stage] = (line, self._changed)
                self._say(line)
                self._last = now
            if not done:
                going_on.append(stage)
        if now - self._last < QUIET_S:
            return
        self._last = now
        for stage in going_on:
            line, since = self._since[stage]
            self._say(f"{line}; no change since {since}")
        if not going_on:
            self._say(f"waits for a first stage to begin, or for the end of the run; since {self._changed}")
