"""The failures that a user sees without a traceback: the user's mistakes (exit status 2) and failed runs (status 1)."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Mistake:
    """One mistake of the user: a message, its place if it is in a file, and a hint such as the nearest valid name."""

    message: str
    file: Path | None = None
    line: int | None = None
    hint: str | None = None

    def __str__(self) -> str:
        where = "" if self.file is None else f"{self.file}:{self.line or 1}: "
        return f"{where}{self.message}" + (f" ({self.hint})" if self.hint else "")


class UserError(Exception):
    """All mistakes of the user that were found. The command line prints one per line and exits with status 2."""

    def __init__(self, mistakes: Mistake | str | Iterable[Mistake]) -> None:
        if isinstance(mistakes, str):
            mistakes = Mistake(mistakes)
        self.mistakes: tuple[Mistake, ...] = (mistakes,) if isinstance(mistakes, Mistake) else tuple(mistakes)
        super().__init__("\n".join(map(str, self.mistakes)))

    def __reduce__(self) -> tuple[type[UserError], tuple[tuple[Mistake, ...]]]:
        return type(self), (self.mistakes,)


class RunError(Exception):
    """A run that failed, with a message for the user. The command line exits with status 1."""


class RunStopped(RunError):  # noqa: N818
    """A run that cannot go on for a reason outside of it: no credit, a dead server. The same command continues it."""


class BudgetReached(RunStopped):
    """A run that has reached a cap. What was paid for is stored. The command line exits with status 3."""


class Interrupted(Exception):  # noqa: N818
    """A run that was stopped before its end. Paid completions are stored. The command line exits with status 130."""


def nearest(name: str, valid: Iterable[str]) -> str | None:
    """Return a hint for an unknown name: the nearest valid name, else all valid names if there are at most 24.

    Args:
        name: the unknown name.
        valid: the valid names.
    """
    names = sorted(valid)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"one of: {', '.join(names)}" if 0 < len(names) <= 24 else None
