"""Mathematical answers, typed by the gold answer."""

from __future__ import annotations

from dataclasses import replace

from tracefactory.schema import Outcome, Verdict
from tracefactory.verifiers.base import ExtractParams, Verifier, VerifyTask, stated_answer
from tracefactory.verifiers.boxes import find_boxes
from tracefactory.verifiers.compare import Comparison, ProseError
from tracefactory.verifiers.extract import Extraction, extract_bare
from tracefactory.verifiers.normalize import MAX_CHARS
from tracefactory.verifiers.quantity_rules import MathParams, Symbolic, UndecidedError
from tracefactory.verifiers.reading import read
from tracefactory.verifiers.symbolic import UnknownError, equivalent
from tracefactory.verifiers.values import Reading, Relation, Sequence, Value


class MathVerifierParams(MathParams, ExtractParams):
    """Policies of mathematical equivalence, and whether the text is a bare answer."""


class MathVerifier(Verifier):
    """Extract the stated answer and compare it with the gold answer by exact rules, then by computer algebra."""

    name = "math"
    version = "1"
    Params = MathVerifierParams

    def quick(self, task: VerifyTask, params: MathVerifierParams) -> Verdict | None:
        return self._decide(task, params, None)

    def full(self, task: VerifyTask, params: MathVerifierParams) -> Verdict:
        decided = self._decide(task, params, equivalent)
        if decided is None:
            raise AssertionError("computer algebra leaves nothing undecided")
        return decided

    def _decide(self, task: VerifyTask, params: MathVerifierParams, symbolic: Symbolic | None) -> Verdict | None:
        gold_text = task.problem.answer
        if gold_text is None or not gold_text.strip():
            return self.verdict(Outcome.UNVERIFIABLE, "no_gold")
        stated = stated_answer(task, bare=params.bare)
        if stated is None:
            return self.verdict(Outcome.UNVERIFIABLE, "no_answer")
        gold, stated = typed(gold_reading(gold_text), stated)
        if len(stated.text) > MAX_CHARS:
            return self.verdict(Outcome.UNVERIFIABLE, "too_long", replace(stated, text=stated.text[:MAX_CHARS]))
        comparison = Comparison(params, symbolic)
        try:
            same = comparison.readings(gold, read(stated.text))
        except UndecidedError as question:
            if symbolic is None:
                return None
            return self.verdict(Outcome.UNVERIFIABLE, "undecided", stated, str(question))
        except UnknownError as error:
            return self.verdict(Outcome.UNVERIFIABLE, "undecided", stated, str(error))
        except ProseError:
            return self.verdict(Outcome.UNVERIFIABLE, "prose", stated)
        return self.verdict(Outcome.CORRECT if same else Outcome.INCORRECT, comparison.method, stated)


def gold_reading(text: str) -> Reading:
    """Read a gold answer: a bare answer, or a worked solution that ends in one."""
    if len(text) <= 300 and not find_boxes(text) and "####" not in text and "nswer" not in text:
        return read(text)
    stated = extract_bare(text)
    return read((stated.together or stated).text)


def typed(gold: Reading, stated: Extraction) -> tuple[Reading, Extraction]:
    """Read boxes that stand side by side as a list when the gold answer is one."""
    if stated.together is not None and any(_several(value) for value in gold.values):
        return gold, stated.together
    return gold, stated


def _several(value: Value) -> bool:
    if isinstance(value, Relation):
        return any(_several(term) for term in value.terms)
    return isinstance(value, Sequence) and value.kind in ("list", "set") and len(value.items) > 1
