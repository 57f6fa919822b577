"""Mathematical answers: numbers, expressions, sets, intervals and equations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from typing import ClassVar

from tracefactory.answers.boxes import find_boxes
from tracefactory.answers.compare import Comparison, ProseError
from tracefactory.answers.extract import extract_bare, extract_several, extract_whole
from tracefactory.answers.extraction import Extraction
from tracefactory.answers.normalize import MAX_CHARS, strip_markup
from tracefactory.answers.quantity_rules import MathParams, Symbolic, UndecidedError
from tracefactory.answers.reading import read
from tracefactory.answers.shapes import Shape, shape_of
from tracefactory.answers.values import Reading, Relation, Sequence, Value
from tracefactory.core.rows import Outcome, Verdict
from tracefactory.maths.symbolic import UnknownError, equivalent, library
from tracefactory.verification.base import READS_MORE, ExtractParams, Verifier, VerifyTask, verifier


class MathVerifierParams(MathParams, ExtractParams):
    """Policies of mathematical equivalence, and whether the text is a bare answer."""


@verifier
class MathVerifier(Verifier):
    """Extract the stated answer and compare it with the gold answer by exact rules, then by computer algebra."""

    name = "math"
    version = "3"
    changes: ClassVar[Mapping[str, str]] = {
        "3": f"{READS_MORE}; for `x = 3` an equation must be solved (`relations`); exact values may have a decimal "
        "beside them; rates and units of one letter are read; digits that a base lacks are refused"
    }
    Params = MathVerifierParams

    def looks_like(self, task: VerifyTask) -> Shape:
        """Return the shape of the gold answer, `any` where there is none."""
        gold = task.problem.answer
        return shape_of(gold_reading(gold)) if gold and gold.strip() else "any"

    def quick(self, task: VerifyTask, params: MathVerifierParams) -> Verdict | None:
        """Return the verdict of the exact rules, None when they cannot decide."""
        return self._decide(task, params, None)

    def full(self, task: VerifyTask, params: MathVerifierParams) -> Verdict:
        """Return the verdict of the exact rules and computer algebra."""
        decided = self._decide(task, params, equivalent)
        if decided is None:
            raise AssertionError("no verdict, although computer algebra was available")
        return decided

    def prepare(self) -> None:
        """Import the computer algebra."""
        library()

    def _decide(self, task: VerifyTask, params: MathVerifierParams, symbolic: Symbolic | None) -> Verdict | None:
        gold_text = task.problem.answer
        if gold_text is None or not gold_text.strip():
            return self.verdict(Outcome.UNVERIFIABLE, "no_gold")
        if params.bare and strip_markup(gold_text) == strip_markup(task.answer_text) != "":
            return self.verdict(Outcome.CORRECT, "string", extract_whole(task.answer_text))
        gold = gold_reading(gold_text)
        stated = self.stated(task, params)
        if stated is None:
            return self.verdict(Outcome.UNVERIFIABLE, "no_answer")
        stated = typed(gold, stated, task.answer_text)
        if len(stated.text) > MAX_CHARS:
            end = stated.start + MAX_CHARS
            return self.verdict(
                Outcome.UNVERIFIABLE, "too_long", replace(stated, text=stated.text[:MAX_CHARS], end=end)
            )
        comparison = Comparison(params, symbolic)
        try:
            same = comparison.readings(gold, read(stated.value))
        except UndecidedError as question:
            if symbolic is None:
                return None
            return self.verdict(Outcome.UNVERIFIABLE, "undecided", stated, str(question))
        except UnknownError as error:
            return self.verdict(Outcome.UNVERIFIABLE, "undecided", stated, str(error))
        except ProseError:
            return self.verdict(Outcome.UNVERIFIABLE, "prose", stated)
        return self.compared(same, comparison.method, stated, params)


@lru_cache(maxsize=8192)
def gold_reading(text: str) -> Reading:
    """Return the readings of a gold answer: a bare answer, or a worked solution that ends with one."""
    if len(text) <= 300 and not find_boxes(text) and "####" not in text and "nswer" not in text:
        return read(text)
    stated = extract_bare(text)
    return read((extract_several(text, stated) or stated).value)


def typed(gold: Reading, stated: Extraction, text: str) -> Extraction:
    """Return several boxes as one answer when the gold answer has several parts and the last box does not.

    Args:
        gold: the gold answer.
        stated: the extracted answer.
        text: the text that it was extracted from.
    """
    if len(stated.boxes) < 2:
        return stated
    for value in gold.values:
        kind, count = _shape(value)
        own = max((_shape(one) for one in read(stated.text).values), key=lambda shape: shape[1], default=("", 1))
        if count < 2 or (own[1] > 1 and (own[0] != "tuple" or kind == "tuple")):
            continue
        together = extract_several(text, stated) or extract_several(text, stated, count)
        if together is None:
            return stated
        if kind == "tuple" and len(together.parts) == count:
            return replace(together, parts=(f"({', '.join(together.parts)})",))
        return replace(together, parts=tuple(dict.fromkeys(together.parts)))
    return stated


def _shape(value: Value) -> tuple[str, int]:
    """Return the kind of a value with several parts and how many it has; 1 for a single value."""
    if isinstance(value, Relation):
        return _shape(value.terms[-1])
    return (value.kind, len(value.items)) if isinstance(value, Sequence) else ("", 1)
