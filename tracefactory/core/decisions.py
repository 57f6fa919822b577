"""What a stage decides about one row: keep it, drop it for a reason, or say that it failed."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

REASON = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")
"""What a reason looks like: it is counted, compared between runs and printed on cards; so, an identifier."""


@dataclass(frozen=True, slots=True)
class Decision:
    """Keep a row (`reason` is None), or not.

    A row that is not kept was dropped for what it is, or `failed`: a request or a program gave nothing for it. A failed
    row that is `owed` failed for a reason that is not its own (a time-out, a rate limit): the next run tries it again.
    """

    reason: str | None = None
    detail: str | None = None
    failed: bool = False
    owed: bool = False

    @property
    def keep(self) -> bool:
        return self.reason is None

    def __bool__(self) -> NoReturn:
        """Raise: an object that is always true would make every `if decide(...)` keep everything."""
        raise TypeError("a Decision has no truth value; ask for .keep")


KEEP = Decision()
"""The decision to keep a row."""

REPLACED = "replaced"
"""The reason of a row that is not passed on because the stage made another one of it. It is not a dropped row."""


def drop(reason: str, detail: str | None = None) -> Decision:
    """Return the decision to drop a row.

    Args:
        reason: a stable snake_case identifier such as "too_long". Numbers and quotes belong into `detail`.
        detail: free text for a person who looks at this one row.

    Raises:
        ValueError: when the reason is no snake_case identifier.
    """
    return _not_kept(reason, detail)


def fail(reason: str, detail: str | None = None, *, owed: bool) -> Decision:
    """Return the decision on a row that something failed on; see `Decision`.

    Raises:
        ValueError: when the reason is no snake_case identifier.
    """
    return _not_kept(reason, detail, failed=True, owed=owed)


def _not_kept(reason: str, detail: str | None, *, failed: bool = False, owed: bool = False) -> Decision:
    if not REASON.fullmatch(reason):
        raise ValueError(f"reason {reason!r} is not snake_case; put what varies from row to row into the detail")
    return Decision(reason, detail, failed, owed)


@dataclass(frozen=True, slots=True)
class Judgement:
    """What a stage that judges says of one row it was given: a decision, and the values of the columns it adds."""

    id: str
    decision: Decision = KEEP
    values: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Made:
    """A row that a stage made, and whether it is passed on. `rejected` is the text of what could not become a row."""

    row: Any
    decision: Decision = KEEP
    rejected: str | None = None
