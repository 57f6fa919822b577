"""The decision of a stage about one row: keep it, drop it for a reason, or record that it failed."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NoReturn

REASON = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")
"""The form of a reason: an identifier, because reasons are counted, compared between runs and printed on cards."""


@dataclass(frozen=True, slots=True)
class Decision:
    """Keep a row (`reason` is None), drop it, or record its failure.

    A dropped row does not meet the stage's conditions. A `failed` row got no result from a request or a program. A
    failed row that is `owed` failed for a temporary cause, such as a time-out or a rate limit; the next run retries it.
    """

    reason: str | None = None
    detail: str | None = None
    failed: bool = False
    owed: bool = False

    @property
    def keep(self) -> bool:
        """Whether the row is kept."""
        return self.reason is None

    def __bool__(self) -> NoReturn:
        """Raise, because `if decide(...)` would be true for every decision."""
        raise TypeError("a Decision has no truth value; use .keep")


KEEP = Decision()
"""The decision to keep a row."""

REPLACED = "replaced"
"""The reason of a row that is not passed on because the stage made another row from it. It is not a dropped row."""


def drop(reason: str, detail: str | None = None) -> Decision:
    """Return the decision to drop a row.

    Args:
        reason: a stable snake_case identifier such as "too_long". Numbers and quotations belong in `detail`.
        detail: free text for a person who inspects this row.

    Raises:
        ValueError: when the reason is not a snake_case identifier.
    """
    if not REASON.fullmatch(reason):
        raise ValueError(f"reason {reason!r} is not snake_case; put what varies from row to row into the detail")
    return Decision(reason, detail)


def fail(reason: str, detail: str | None = None, *, owed: bool) -> Decision:
    """Return the decision to record a failure.

    Args:
        reason: a stable snake_case identifier such as "timeout".
        detail: free text for a person who inspects this row.
        owed: whether the next run retries the row.

    Raises:
        ValueError: when the reason is not a snake_case identifier.
    """
    return replace(drop(reason, detail), failed=True, owed=owed)


@dataclass(frozen=True, slots=True)
class Judgement:
    """The result of a judging stage for one input row: its decision, and the values of the columns it adds."""

    id: str
    decision: Decision = KEEP
    values: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Made:
    """A row that a stage made, and its decision on the row. `rejected` is the text of a record that cannot be a row."""

    row: Any
    decision: Decision = KEEP
    rejected: str | None = None
