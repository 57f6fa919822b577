"""Strings: compare them after normalisation."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from typing import ClassVar

from pydantic import Field

from tracefactory.answers.normalize import strip_markup
from tracefactory.answers.shapes import Shape
from tracefactory.answers.words import plain, same_thing
from tracefactory.core.rows import Outcome, Verdict
from tracefactory.verification.base import READS_MORE, ExtractParams, Verifier, VerifyTask, verifier, whole_or_stated


class ExactParams(ExtractParams):
    """The parameters of the comparison of strings."""

    case: bool = Field(default=True, description="Whether letter case must agree.")
    whole: bool = Field(default=False, description="Compare the whole text instead of the answer that it states.")


@verifier
class ExactVerifier(Verifier):
    """Compare strings after trimming, Unicode normalisation and runs of white space."""

    name = "exact"
    version = "3"
    changes: ClassVar[Mapping[str, str]] = {
        "3": READS_MORE + "; dates, times and chemical formulas equal their other spellings"
    }
    Params = ExactParams

    def looks_like(self, task: VerifyTask) -> Shape:
        return "words"

    def quick(self, task: VerifyTask, params: ExactParams) -> Verdict | None:
        """Compare the stated answer, with and without its markup, with the gold answer."""
        gold = task.problem.answer
        if gold is None:
            return self.verdict(Outcome.UNVERIFIABLE, "no_gold")
        stated = whole_or_stated(self, task, params, whole=params.whole)
        if stated is None:
            return self.verdict(Outcome.UNVERIFIABLE, "no_answer")
        forms = [
            _spaced(text) if params.case else _spaced(text).casefold()
            for text in (gold, plain(stated.value), strip_markup(stated.value), stated.value)
        ]
        same = forms[0] in forms[1:] or same_thing(gold, stated.value)
        return self.compared(same, "exact", stated, params)


def _spaced(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", text).split())
