"""Keep the shortest prefix that the student judges sufficient, and let the student continue it.

Source: P-ALIGN (arXiv 2601.10064; github.com/NEUIR/P-ALIGN): binary search over sentences with the student's own
[ENOUGH] / [NOT_ENOUGH], then the student's continuation (temperature 0.6) as the training text. Where the source
uses the whole trace, the parent is kept here, with a reason.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import ClassVar

from pydantic import Field

from tracefactory.pruning.base import (
    CONTEXT_LENGTH,
    PRUNERS,
    Asks,
    ConcludeItem,
    Conclusion,
    Cost,
    PruneItem,
    Pruner,
    PruneResult,
    Tools,
    keep,
    parent,
)
from tracefactory.pruning.search import Search, Test, max_calls, shortest_prefixes

_JUDGED = re.compile(r"\[?\b(NOT[ _-]?ENOUGH|ENOUGH)\b\]?", re.IGNORECASE)


@PRUNERS.register("sufficient_prefix")
class SufficientPrefix(Pruner):
    """Keep the shortest prefix that the student judges sufficient, and let the student continue it."""

    needs: ClassVar[frozenset[str]] = frozenset({"judge"})
    concludes: ClassVar[bool] = True

    temperature: float = Field(
        default=0.6, ge=0, description="Sampling temperature of the continuation; the judgement is greedy."
    )

    async def prune(self, items: Sequence[PruneItem], tools: Tools) -> list[PruneResult]:
        """Search all traces in parallel, then sample all continuations in one batch."""
        student = tools.require_student("sufficient_prefix")
        stepped = [item for item in items if item.steps]

        async def ask(asking: Sequence[tuple[int, int]]) -> list[Test]:
            prefixes = [_question(stepped[number], count, 0.0) for number, count in asking]
            return [judged(reply) for reply in await student.judge(prefixes)]

        searches = await shortest_prefixes([len(item.steps) for item in stepped], ask)
        found: dict[str, PruneResult] = {}
        cut: list[tuple[PruneItem, Search]] = []
        for item, search in zip(stepped, searches, strict=True):
            reason = _reason_to_keep(item, search)
            if reason is None:
                cut.append((item, search))
            else:
                found[item.trace.id] = parent(item, reason, Cost(calls=search.calls, samples=search.calls))
        prefixes = [_question(item, search.best or 0, self.temperature) for item, search in cut]
        replies = await student.extend(prefixes) if prefixes else []
        for (item, search), reply in zip(cut, replies, strict=True):
            cost = Cost(calls=search.calls + 1, samples=search.calls + 1)
            if reply.error:
                found[item.trace.id] = parent(item, "student_error", cost, reply.error)
                continue
            kept = range(search.best or 0)
            result = keep(item, kept, reply.text, added=reply.reasoning, closed=reply.closed, cost=cost)
            found[item.trace.id] = result
        return [found.get(item.trace.id) or parent(item, "no_reasoning") for item in items]

    def asks_at_most(self, item: PruneItem) -> Asks:
        """Return the maximum number of judgements of the search, and one continuation."""
        return Asks(answers=max_calls(len(item.steps)), continuations=1) if item.steps else Asks()


def judged(reply: Conclusion) -> Test:
    """Return the result of a judgement. The last statement counts; a reply without one means "not enough"."""
    if reply.error:
        return Test.TOO_LONG if reply.error == CONTEXT_LENGTH else Test.BROKEN
    statements = _JUDGED.findall(reply.text)
    return Test.PASSED if statements and statements[-1].upper() == "ENOUGH" else Test.FAILED


def _question(item: PruneItem, count: int, temperature: float) -> ConcludeItem:
    trace = item.trace
    return ConcludeItem(
        id=trace.id, question=trace.problem.question, reasoning=item.prefix(count), temperature=temperature
    )


def _reason_to_keep(item: PruneItem, search: Search) -> str | None:
    """Return the reason to keep the whole parent trace; None when a shorter prefix is sufficient."""
    if search.broken:
        return "student_error"
    if search.best is None:
        return "never_sufficient"
    return "no_shorter_prefix" if search.best == len(item.steps) else None
