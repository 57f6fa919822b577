"""The student of a prune stage as it scores given text: rendered as in training, and only the tokens that are asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from tracefactory.core.model import RequestFailed
from tracefactory.core.token_scores import TokenScores
from tracefactory.pruning import CONTEXT_LENGTH, ScoreItem, TextScores
from tracefactory.stages.measure.student import ScoredStudent
from tracefactory.students.render import Rendered, RenderError


@dataclass(frozen=True)
class _Part:
    """What is scored of a rendering: `rendered` begins at the first token that is asked for.

    `at` is the character of the supervised text at which the reasoning begins, `answer` the range of the answer with
    the sign that ends it.
    """

    item: ScoreItem
    rendered: Rendered
    at: int
    answer: tuple[int, int]


@dataclass
class StudentScorer:
    """Scores texts with a student; `failed` is, by trace, the failure of a request that another run should try."""

    student: ScoredStudent
    failed: dict[str, RequestFailed] = field(default_factory=dict)

    async def score(self, items: Sequence[ScoreItem]) -> list[TextScores]:
        """Score each reasoning with its answer; one result for each item, in order."""
        found: dict[int, TextScores] = {}
        parts: dict[int, _Part] = {}
        for index, item in enumerate(items):
            part = self._part(item)
            if isinstance(part, _Part):
                parts[index] = part
            else:
                found[index] = TextScores(error=part)
        scores = await self.student.student.score([part.rendered for part in parts.values()]) if parts else []
        for (index, part), one in zip(parts.items(), scores, strict=True):
            found[index] = self._read(part, one)
        return [found[index] for index in range(len(items))]

    def _part(self, item: ScoreItem) -> _Part | str:
        """Render an item and find what is scored of it; return the reason where that cannot be."""
        student = self.student.student
        try:
            rendered = student.render(item.question, item.reasoning, item.before + item.answer + item.after)
        except RenderError as error:
            return error.reason
        if student.max_tokens is not None and len(rendered) > student.max_tokens:
            return CONTEXT_LENGTH
        bare = item.reasoning.strip()
        at = rendered.text.find(bare) - (len(item.reasoning) - len(item.reasoning.lstrip()))
        start = rendered.text.rfind(item.before + item.answer) + len(item.before)
        if bare not in rendered.text or start < len(item.before):
            return "not_rendered_whole"
        answer = (start, start + len(item.answer) + min(1, len(item.after)))
        return _Part(item, _narrowed(rendered, at + item.since if bare else answer[0], answer[1]), at, answer)

    def _read(self, part: _Part, scores: TokenScores | RequestFailed) -> TextScores:
        item = part.item
        if isinstance(scores, RequestFailed):
            if scores.retryable:
                self.failed[item.id] = scores
            return TextScores(error=scores.kind)
        starts, ends = scores.starts - part.at, scores.ends - part.at
        reasoning = (ends > item.since) & (starts < len(item.reasoning.rstrip()))
        answer = (scores.ends > part.answer[0]) & (scores.starts < part.answer[1])
        if not item.reasoning.strip():
            reasoning[:] = False
        return TextScores(
            ends=tuple(np.minimum(ends[reasoning], len(item.reasoning)).tolist()),
            logprobs=tuple(scores.logprobs[reasoning].astype(float).tolist()),
            answer=tuple(scores.logprobs[answer].astype(float).tolist()),
        )


def _narrowed(rendered: Rendered, after: int, before: int) -> Rendered:
    """Return a rendering whose supervised tokens are those that end after one character and begin before another."""
    first = int(np.searchsorted(rendered.ends, after, side="right"))
    stop = int(np.searchsorted(rendered.starts, before, side="left"))
    return replace(
        rendered,
        first=rendered.first + first,
        stop=rendered.first + stop,
        starts=rendered.starts[first:stop],
        ends=rendered.ends[first:stop],
    )
