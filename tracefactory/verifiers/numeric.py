"""Numbers: compare them with a tolerance."""

from __future__ import annotations

import json
from collections.abc import Mapping
from fractions import Fraction
from typing import ClassVar

from pydantic import Field

from tracefactory.answers.reading import read
from tracefactory.answers.relations import named_value
from tracefactory.answers.shapes import Shape
from tracefactory.answers.values import Quantity, Reading, Relation, Value
from tracefactory.core.rows import Outcome, Verdict
from tracefactory.maths.evaluate import UnboundedError, constant
from tracefactory.verification.base import READS_MORE, ExtractParams, Verifier, VerifyTask, verifier
from tracefactory.verifiers.math import gold_reading


class NumericParams(ExtractParams):
    """Largest differences that count as equal."""

    abs_tol: float = Field(default=0.0, ge=0, description="Largest absolute difference.")
    rel_tol: float = Field(default=1e-6, ge=0, lt=1, description="Largest difference, relative to the gold answer.")


@verifier
class NumericVerifier(Verifier):
    """Compare one number with a tolerance."""

    name = "numeric"
    version = "3"
    changes: ClassVar[Mapping[str, str]] = {"3": READS_MORE}
    Params = NumericParams

    def looks_like(self, task: VerifyTask) -> Shape:
        return "number"

    def quick(self, task: VerifyTask, params: NumericParams) -> Verdict | None:
        """Compare the number of the stated answer with the gold answer."""
        if not (task.problem.answer or "").strip():
            return self.verdict(Outcome.UNVERIFIABLE, "no_gold")
        gold = number_in(gold_reading(task.problem.answer or ""))
        if gold is None:
            return self.verdict(Outcome.UNVERIFIABLE, "gold_is_no_number")
        stated = self.stated(task, params)
        if stated is None:
            return self.verdict(Outcome.UNVERIFIABLE, "no_answer")
        answer = number_in(read(stated.value))
        if answer is None:
            return self.compared(False, "no_number", stated, params)
        allowed = max(Fraction(params.abs_tol), abs(gold) * Fraction(params.rel_tol))
        close = abs(gold - answer) <= allowed
        return self.compared(close, "numeric", stated, params, json.dumps(float(answer)))


def number_in(reading: Reading) -> Fraction | None:
    """Return the real number that an answer denotes, None when it denotes none."""
    for value in reversed(reading.values):
        number = _number(value)
        if number is not None:
            return number
    return None


def _number(value: Value) -> Fraction | None:
    if isinstance(value, Relation):
        named = named_value(value)
        return None if named is None else _number(named)
    if not isinstance(value, Quantity) or value.node is None:
        return None
    try:
        number = constant(value.node)
    except UnboundedError:
        return None
    if number.imag:
        return None
    exact = Fraction(str(number.real))
    return exact / 100 if value.percent else exact
