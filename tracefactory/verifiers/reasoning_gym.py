"""Problems of reasoning_gym, scored by the task's own scorer."""

from __future__ import annotations

import importlib
import re
from functools import lru_cache
from typing import Any

from pydantic import Field

from tracefactory.answers.extract import Extraction
from tracefactory.core.rows import Outcome, Verdict
from tracefactory.verification.base import ExtractParams, Verifier, VerifyTask, stated_answer, verifier

_TAGGED = re.compile(r"<answer>\s*(.*?)\s*</answer>", re.DOTALL | re.IGNORECASE)
_FENCED = re.compile(r"```[a-zA-Z]*\n(.*?)\n?```", re.DOTALL)
_ANNOUNCED = re.compile(r"(?:final\s+answer|answer)\s*(?:is)?\s*\**\s*[:：]\s*\**\s*", re.IGNORECASE)
_WHOLE_LIMIT = 2000


class ReasoningGymParams(ExtractParams):
    """What the task's own scorer is asked about."""

    task: str = Field(description="The dataset.")
    entry: dict[str, Any] = Field(description="Its row: question, answer, metadata.")
    threshold: float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="Lowest score of a right answer; scorers give it 1.0, and others 0.01 or a share of right cells.",
    )


@verifier
class ReasoningGymVerifier(Verifier):
    """Ask the dataset's `score_answer`. Grids and plans span lines, so several readings of the text are scored."""

    name = "reasoning_gym"
    version = "2"
    Params = ReasoningGymParams

    def quick(self, task: VerifyTask, params: ReasoningGymParams) -> Verdict | None:
        if not candidates(task, params):
            return self.verdict(Outcome.UNVERIFIABLE, "no_answer")
        return None

    def prepare(self) -> None:
        importlib.import_module("reasoning_gym.factory")

    def full(self, task: VerifyTask, params: ReasoningGymParams) -> Verdict:
        found = candidates(task, params)
        if not found:
            return self.verdict(Outcome.UNVERIFIABLE, "no_answer")
        scorer = _dataset(params.task)
        scored = [(float(scorer.score_answer(one.text, params.entry)), one) for one in found]
        score, best = max(scored, key=lambda pair: pair[0])
        outcome = Outcome.CORRECT if score >= params.threshold else Outcome.INCORRECT
        chosen = best if outcome is Outcome.CORRECT else found[0]
        return self.verdict(outcome, "score", chosen, f"score={score:g}")


def candidates(task: VerifyTask, params: ReasoningGymParams) -> list[Extraction]:
    """Return the readings of the stated answer: the last statement as given, and its block when it spans lines.

    They are spellings of one statement, never two different ones: a second guess must not earn a second chance.
    """
    text = task.answer_text
    if params.bare and text.strip():
        return [_part(text, 0, len(text), "whole")]
    tagged = list(_TAGGED.finditer(text))
    if tagged:
        return [_part(text, *tagged[-1].span(1), "tagged")]
    stated = stated_answer(task, bare=False)
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
    from reasoning_gym.factory import DATASETS, create_dataset  # a second to import, and only worker processes need it

    if name not in DATASETS:
        raise ValueError(f"reasoning_gym has no task {name!r}")
    if name == "composite":
        raise ValueError("composite rows are scored by the dataset they come from")
    return create_dataset(name, size=1, seed=0)
