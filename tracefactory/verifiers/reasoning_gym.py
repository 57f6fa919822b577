"""Problems of reasoning_gym: score answers with the scorer of the task."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from functools import lru_cache
from typing import Any, ClassVar

from pydantic import Field

from tracefactory.answers.extraction import Extraction
from tracefactory.core.errors import UserError
from tracefactory.core.rows import Outcome, Verdict
from tracefactory.reading import gym
from tracefactory.verification.base import READS_MORE, ExtractParams, Verifier, VerifyTask, stated_answer, verifier

_TAGGED = re.compile(r"<answer>((?:[^<]|<(?!/?answer>))*+)</answer>", re.DOTALL | re.IGNORECASE)
_FENCED = re.compile(r"```[a-zA-Z]*\n(.*?)\n?```", re.DOTALL)
_ANNOUNCED = re.compile(r"answer\s*+(?:is\s*+)?(?:\**+\s*+)?[:：]\s*+\**+\s*+", re.IGNORECASE)
_WHOLE_LIMIT = 2000


class ReasoningGymParams(ExtractParams):
    """The problem that the task's scorer needs, and the lowest score of a correct answer."""

    task: str = Field(description="The name of the task.")
    entry: dict[str, Any] = Field(description="The problem of the task: question, answer, metadata.")
    threshold: float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="The lowest score of a correct answer. Scorers give it 1.0, and other answers 0.01 or the share of "
        "correct cells.",
    )


@verifier
class ReasoningGymVerifier(Verifier):
    """Score the answer with the task's `score_answer`, in several forms, because grids and plans span lines."""

    name = "reasoning_gym"
    version = "3"
    changes: ClassVar[Mapping[str, str]] = {"3": READS_MORE}
    Params = ReasoningGymParams

    def quick(self, task: VerifyTask, params: ReasoningGymParams) -> Verdict | None:
        """Return `unverifiable` without a stated answer, None when it must be scored."""
        if not candidates(task, params):
            return self.verdict(Outcome.UNVERIFIABLE, "no_answer")
        return None

    def prepare(self) -> None:
        """Import reasoning_gym, which the time limit of a row does not count; where it is missing, each row says so."""
        with suppress(UserError):
            gym.tasks()

    def full(self, task: VerifyTask, params: ReasoningGymParams) -> Verdict:
        """Score every form of the stated answer; the highest score decides."""
        found = candidates(task, params)
        if not found:
            return self.verdict(Outcome.UNVERIFIABLE, "no_answer")
        scorer = _dataset(params.task)
        scored = [(float(scorer.score_answer(one.value, params.entry)), one) for one in found]
        score, best = max(scored, key=lambda pair: pair[0])
        same = score >= params.threshold
        return self.compared(same, "score", best if same else found[0], params, f"score={score:g}")


def candidates(task: VerifyTask, params: ReasoningGymParams) -> list[Extraction]:
    """Return the forms of the stated answer to score: the last statement, and its block when it spans lines.

    All forms are of one statement, because an answer with two guesses must not be scored twice.

    Args:
        task: the answer to check.
        params: whether the text is a bare answer.
    """
    text = task.answer_text
    if params.bare and text.strip():
        return [_part(text, 0, len(text), "whole")]
    tagged = list(_TAGGED.finditer(text))
    if tagged:
        return [_part(text, *tagged[-1].span(1), "tagged")]
    stated = stated_answer(task, params)
    if stated is not None and stated.how == "boxed":
        return [stated]
    found: list[Extraction] = []
    announced = list(_ANNOUNCED.finditer(text))
    if announced and not task.cut_off:
        start = announced[-1].end()
        fence = _FENCED.search(text, start)
        if fence:
            return [_part(text, *fence.span(1), "fenced")]
        found.append(_part(text, start, len(text), "announced"))
    if stated is not None:
        found.append(stated)
    if not found and not task.cut_off:
        fences = list(_FENCED.finditer(text))
        if fences:
            found.append(_part(text, *fences[-1].span(1), "fenced"))
        elif text.strip() and len(text) <= _WHOLE_LIMIT:
            found.append(_part(text, 0, len(text), "whole"))
    return [one for one in found if one.text]


def _part(text: str, start: int, end: int, how: str) -> Extraction:
    piece = text[start:end]
    inner = piece.strip().strip("*`").strip()
    at = start + piece.find(inner)
    return Extraction(inner, at, at + len(inner), how)


@lru_cache(maxsize=256)
def _dataset(name: str) -> Any:
    if name == "composite":
        raise ValueError("composite rows are scored by the dataset they come from")
    if name not in gym.tasks():
        raise ValueError(f"reasoning_gym has no task {name!r}")
    dataset, config = gym.tasks()[name]
    return dataset(config=config(size=1, seed=0))
