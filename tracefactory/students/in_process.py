"""A student in this process, with the asynchronous interface of a served student."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tracefactory.core.model import RequestFailed
from tracefactory.core.token_scores import TokenScores
from tracefactory.students.render import Rendered

if TYPE_CHECKING:
    from tracefactory.students.contrast import Contrast
    from tracefactory.students.student import Student


class InProcess:
    """Runs one pass of the student at a time, in a thread, so that the event loop is not blocked."""

    def __init__(self, student: Student | Contrast) -> None:
        self.student = student
        self.max_tokens = student.max_tokens
        self.render = student.render
        self._lock = asyncio.Lock()

    async def score(self, rendered: Sequence[Rendered]) -> list[TokenScores | RequestFailed]:
        """Score the supervised tokens of every rendering, in order; raises what `Student.score` raises."""
        async with self._lock:
            return list(await asyncio.to_thread(self.student.score, rendered))
