"""Free text: compare its words."""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field

from tracefactory.answers.shapes import Shape
from tracefactory.answers.words import plain, same_thing
from tracefactory.core.rows import Outcome, Verdict
from tracefactory.verification.base import READS_MORE, ExtractParams, Verifier, VerifyTask, verifier, whole_or_stated


class TextParams(ExtractParams):
    """The parameters of the comparison of free text."""

    match: Literal["equal", "contains", "f1"] = Field(
        default="equal",
        description="equal: the same normalised words; contains: the gold words in a row; f1: a word overlap of at "
        "least `min_f1` (SQuAD, Rajpurkar et al. 2016).",
    )
    min_f1: float = Field(
        default=0.8, gt=0, le=1, description="The smallest word overlap of a correct answer, for `match: f1`."
    )
    any_of: tuple[str, ...] = Field(default=(), description="Further correct answers, in addition to the gold answer.")


@verifier
class TextVerifier(Verifier):
    """Compare free text by its words, without case, punctuation and articles."""

    name = "text"
    version = "3"
    changes: ClassVar[Mapping[str, str]] = {
        "3": READS_MORE + "; dates, times and chemical formulas equal their other spellings"
    }
    Params = TextParams

    def looks_like(self, task: VerifyTask) -> Shape:
        return "words"

    def quick(self, task: VerifyTask, params: TextParams) -> Verdict | None:
        """Compare the words of the stated answer with those of each gold answer."""
        golds = [text for text in (task.problem.answer, *params.any_of) if text is not None and text.strip()]
        if not golds:
            return self.verdict(Outcome.UNVERIFIABLE, "no_gold")
        stated = whole_or_stated(self, task, params, whole=False)
        if stated is None:
            return self.verdict(Outcome.UNVERIFIABLE, "no_answer")
        answer = text_words(plain(stated.value))
        same = any(
            _text_matches(text_words(plain(gold)), answer, params) or same_thing(gold, stated.value) for gold in golds
        )
        return self.compared(same, f"text_{params.match}", stated, params)


def text_words(text: str) -> list[str]:
    """Return the words of a text, case folded, without articles and punctuation; each Chinese character is a word."""
    text = unicodedata.normalize("NFKC", text).casefold()
    text = re.sub(r"([\u4e00-\u9fff])", r" \1 ", text)
    text = text.translate(
        {ord(sign): " " for sign in string.punctuation.replace("-", "").replace("+", "") + "。，、；：？！“”‘’（）"}
    )
    return [word for word in text.split() if word not in ("a", "an", "the")]


def _text_matches(gold: list[str], answer: list[str], params: TextParams) -> bool:
    if params.match == "equal":
        return gold == answer
    if params.match == "contains":
        return any(answer[start : start + len(gold)] == gold for start in range(len(answer) - len(gold) + 1))
    shared = sum((Counter(gold) & Counter(answer)).values())
    return bool(shared) and 2 * shared / (len(gold) + len(answer)) >= params.min_f1
