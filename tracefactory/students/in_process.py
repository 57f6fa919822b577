"""A student in this worker's own memory behind the interface of one that is served."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tracefactory.core.model import RequestFailed
from tracefactory.core.token_scores import TokenScores
from tracefactory.students.render import Rendered

if TYPE_CHECKING:
    from tracefactory.students.student import Student


class InProcess:
    """Runs one pass of the student at a time, in a thread, so that the worker goes on meanwhile."""

    def __init__(self, student: Student) -> None:
        self.student = student
        self.max_tokens = student.max_tokens
        self.render = student.render
        self._turn = asyncio.Lock()

    async def score(self, rendered: Sequence[Rendered]) -> list[TokenScores | RequestFailed]:
        """Score the supervised tokens of every rendering, in the order given; raises what `Student.score` does."""
        async with self._turn:
            return list(await asyncio.to_thread(self.student.score, rendered))
