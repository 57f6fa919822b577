"""Keep the shortest prefix the student judges sufficient, and let the student go on from there.

Source: P-ALIGN (arXiv 2601.10064; github.com/NEUIR/P-ALIGN): binary search over sentences with the student's own
[ENOUGH] / [NOT_ENOUGH], then the student's continuation (temperature 0.6) as the training text. Where the source
falls back to the whole trace, the parent stands here, with a reason.
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
    """Keep the shortest prefix the student judges sufficient, and let the student go on from there."""

    needs: ClassVar[frozenset[str]] = frozenset({"judge"})

    temperature: float = Field(
        default=0.6, ge=0, description="Sampling temperature of the continuation; the judgement is greedy."
    )

    async def prune(self, items: Sequence[PruneItem], tools: Tools) -> list[PruneResult]:
        """Search all traces in lockstep, then ask for all continuations at once."""
        student = tools.require_student("sufficient_prefix")
        stepped = [item for item in items if item.steps]

        async def ask(asking: Sequence[tuple[int, int]]) -> list[Test]:
            prefixes = [_question(stepped[number], count, 0.0) for number, count in asking]
            return [judged(reply) for reply in await student.judge(prefixes)]

        searches = await shortest_prefixes([len(item.steps) for item in stepped], ask)
        cut = [(item, search) for item, search in zip(stepped, searches, strict=True) if not _stands(item, search)]
        asked = [_question(item, search.best or 0, self.temperature) for item, search in cut]
        written = await student.extend(asked) if asked else []
        found = {
            item.trace.id: _continued(item, search, reply) for (item, search), reply in zip(cut, written, strict=True)
        }
        for item, search in zip(stepped, searches, strict=True):
            reason = _stands(item, search)
            if reason:
                found[item.trace.id] = parent(item, reason, Cost(calls=search.calls, samples=search.calls))
        return [found.get(item.trace.id) or parent(item, "no_reasoning") for item in items]

    def asks_at_most(self, item: PruneItem) -> Asks:
        """Return the bound of the search, and the continuation."""
        return Asks(answers=max_calls(len(item.steps)), continuations=1) if item.steps else Asks()


def judged(reply: Conclusion) -> Test:
    """Read a judgement: the last one stated counts, and a reply without one is taken for "not enough"."""
    if reply.error:
        return Test.TOO_LONG if reply.error == CONTEXT_LENGTH else Test.BROKEN
    said = _JUDGED.findall(reply.text)
    return Test.PASSED if said and said[-1].upper() == "ENOUGH" else Test.FAILED


def _question(item: PruneItem, count: int, temperature: float) -> ConcludeItem:
    trace = item.trace
    return ConcludeItem(
        id=trace.id, question=trace.problem.question, reasoning=item.prefix(count), temperature=temperature
    )


def _stands(item: PruneItem, search: Search) -> str | None:
    if search.broken:
        return "student_error"
    if search.best is None:
        return "never_sufficient"
    return "no_shorter_prefix" if search.best == len(item.steps) else None


def _continued(item: PruneItem, search: Search, reply: Conclusion) -> PruneResult:
    cost = Cost(calls=search.calls + 1, samples=search.calls + 1)
    if reply.error:
        return parent(item, "student_error", cost, reply.error)
    kept = range(search.best or 0)
    return keep(item, kept, reply.text, added=reply.reasoning, closed=reply.closed, cost=cost)
