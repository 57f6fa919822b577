"""The two kinds of failure a person sees: a mistake of theirs (exit 2, no traceback) and a failed run (exit 1)."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Mistake:
    """One thing the user got wrong: where it is, what is wrong, and the nearest valid name if there is one."""

    message: str
    file: Path | None = None
    line: int | None = None
    hint: str | None = None

    def __str__(self) -> str:
        where = "" if self.file is None else f"{self.file}:{self.line or 1}: "
        return f"{where}{self.message}" + (f" ({self.hint})" if self.hint else "")


class UserError(Exception):
    """The user's mistakes, all at once. The command line prints them one per line and exits with 2."""

    def __init__(self, mistakes: Mistake | str | Iterable[Mistake]) -> None:
        if isinstance(mistakes, str):
            mistakes = Mistake(mistakes)
        self.mistakes: tuple[Mistake, ...] = (mistakes,) if isinstance(mistakes, Mistake) else tuple(mistakes)
        super().__init__("\n".join(map(str, self.mistakes)))

    def __reduce__(self) -> tuple[type[UserError], tuple[tuple[Mistake, ...]]]:
        return type(self), (self.mistakes,)


class RunError(Exception):
    """A run that could not be finished, with a message for a person. The command line exits with 1."""


class Interrupted(Exception):  # noqa: N818
    """A run that was stopped before its end; what was paid for is stored. The command line exits with 130."""


def nearest(name: str, valid: Iterable[str]) -> str | None:
    """Return a hint naming the valid name closest to `name`, or all of them when they are few and none is close."""
    names = sorted(valid)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"one of: {', '.join(names)}" if 0 < len(names) <= 24 else None
