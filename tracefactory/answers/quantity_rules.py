"""Rules for the equality of two quantities: numbers and expressions with units, percent signs and rounding."""

from __future__ import annotations

import re
from collections.abc import Callable
from fractions import Fraction
from typing import Literal

from pydantic import Field

from tracefactory.answers.normalize import squash
from tracefactory.answers.units import UNITS, Unit
from tracefactory.answers.values import Quantity
from tracefactory.core.rows import Frozen
from tracefactory.maths.evaluate import (
    IrrationalError,
    Number,
    UnboundedError,
    close,
    constant,
    huge,
    identical,
    rational,
    symbols,
)
from tracefactory.maths.expression import Node


class UndecidedError(Exception):
    """The exact rules cannot decide; `left` and `right` are the texts of the parts that they cannot compare."""

    def __init__(self, left: str, right: str) -> None:
        super().__init__(f"{left} ? {right}")
        self.left, self.right = left, right


class MathParams(Frozen):
    """The policy of mathematical equivalence."""

    units: Literal["optional", "required"] = Field(
        default="optional",
        description="Whether an answer may leave out the unit of the gold answer; a different unit is always wrong.",
    )
    convert_units: bool = Field(default=True, description="Whether 1 km equals 1000 m.")
    percent: Literal["either", "strict"] = Field(
        default="either", description="either: 12.5% equals both 12.5 and 0.125; strict: only 0.125."
    )
    ordered: bool = Field(
        default=False, description="Whether bare lists (1, 2) keep their order; tuples always do and sets never."
    )
    relations: Literal["solved", "equivalent"] = Field(
        default="solved",
        description="solved: where the gold answer is x = 3 or x > 4, a relation that is not solved for x is wrong; "
        "equivalent: 2x = 6 and 3x > 12 are right, too.",
    )
    digits: int = Field(
        default=6,
        ge=1,
        description="Significant digits from which a decimal may stand for a number that it rounds (or cuts) to.",
    )
    decimals: int | None = Field(
        default=None,
        ge=0,
        description="The answer is right if it equals the gold answer after rounding to so many decimals.",
    )
    tolerance: float = Field(default=0.0, ge=0, lt=1, description="Relative difference that counts as equal.")


_DIGITS = re.compile(r"[\d\s]+")
Symbolic = Callable[[str, str], bool]
_DEGREE: Unit = UNITS["°"]
_RADIAN: Unit = UNITS["rad"]


class QuantityRules:
    """Compares quantities under a policy; `method` is the rule that decided last."""

    def __init__(self, params: MathParams, symbolic: Symbolic | None) -> None:
        self.params = params
        self.symbolic = symbolic
        self.method = "number"

    def equal(self, gold: Quantity, answer: Quantity) -> bool:
        """Return whether two quantities are equal under the policy.

        Raises:
            UndecidedError: when exact rules cannot decide and there is no computer algebra.
        """
        if gold.node is None or answer.node is None:
            return self.ask(gold, answer)
        if not self._nouns_agree(gold, answer) or (gold.base is None) != (answer.base is None):
            return False
        scale = self._unit_scale(gold, answer)
        if scale is not None:
            scale = self._rate_scale(gold, answer, scale)
        if scale is not None and gold.percent != answer.percent:
            exact = Fraction(1, 100) if gold.percent else Fraction(100)
            if self._same_number(gold, answer, scale * exact):
                return True
            return self.params.percent == "either" and self._same_number(gold, answer, scale)
        if scale is not None and self._same_number(gold, answer, scale):
            return True
        return self._as_symbols(gold, answer) or self._angle(gold, answer)

    def ask(self, gold: Quantity, answer: Quantity) -> bool:
        """Return whether computer algebra finds the texts of two quantities equal.

        Raises:
            UndecidedError: when there is no computer algebra.
        """
        if squash(gold.source) == squash(answer.source):
            return True
        if _DIGITS.fullmatch(gold.source) and _DIGITS.fullmatch(answer.source):
            return False  # `1 2` is not 12
        if self.symbolic is None:
            raise UndecidedError(gold.source, answer.source)
        self.method = "symbolic"
        return self.symbolic(gold.source, answer.source)

    def _nouns_agree(self, gold: Quantity, answer: Quantity) -> bool:
        if gold.nouns and answer.nouns:
            return bool(gold.nouns & answer.nouns)
        return not ((gold.nouns and answer.unit is not None) or (answer.nouns and gold.unit is not None))

    def _unit_scale(self, gold: Quantity, answer: Quantity) -> Fraction | None:
        """Return one unit of the gold answer in units of the answer, None when the dimensions differ."""
        if gold.unit is None or answer.unit is None:
            symbolic = any(symbols(node_of(quantity)) for quantity in (gold, answer))
            if symbolic and gold.unit is not answer.unit:
                return None
            if gold.glued:
                return None  # the gold answer 5m may be an expression
            if gold.unit is not None and self.params.units == "required":
                return None
            return Fraction(1)
        if gold.unit.dimension != answer.unit.dimension:
            pounds = {gold.unit, answer.unit} == {UNITS["£"], UNITS["lb"]}
            return Fraction(1) if pounds and "pound" in gold.source + answer.source else None
        if gold.unit.factor != answer.unit.factor and not self.params.convert_units:
            return None
        return gold.unit.factor / answer.unit.factor

    def _rate_scale(self, gold: Quantity, answer: Quantity, scale: Fraction) -> Fraction | None:
        """Return the scale with the times of two rates; a rate may leave its time out where units are optional."""
        if gold.per is None:
            return scale
        if answer.per is None:
            return None if self.params.units == "required" else scale
        if gold.per.dimension != answer.per.dimension:
            return None
        return scale * answer.per.factor / gold.per.factor

    def _as_symbols(self, gold: Quantity, answer: Quantity) -> bool:
        """Compare with unit letters as variables, if both expressions then have the same variables."""
        if gold.as_symbols is None and answer.as_symbols is None:
            return False
        one, two = gold.as_symbols or node_of(gold), answer.as_symbols or node_of(answer)
        if gold.unit is not None and answer.unit is not None:
            return False
        return symbols(one) == symbols(two) and bool(symbols(one)) and self._identical(one, two, gold, answer)

    def _angle(self, gold: Quantity, answer: Quantity) -> bool:
        """Compare an angle in degrees with one in radians, written with or without its unit."""
        for one, two in ((gold, answer), (answer, gold)):
            if one.unit == _DEGREE and two.unit in (None, _RADIAN):
                radians = Node("fn", (node_of(one),), name="degrees")
                if "pi" in node_of(two).names() and self._identical(radians, node_of(two), gold, answer):
                    return True
        return False

    def _same_number(self, gold: Quantity, answer: Quantity, scale: Fraction) -> bool:
        one, two = node_of(gold), node_of(answer)
        self.method = "number"
        try:
            left, right = rational(one) * scale, rational(two)
        except IrrationalError:
            scaled = one if scale == 1 else Node("mul", (Node("num", value=scale), one))
            if symbols(one) or symbols(two):
                return self._identical(scaled, two, gold, answer)
            try:
                left, right = constant(scaled), constant(two)
            except UnboundedError:
                return False if huge(scaled) != huge(two) else self.ask(gold, answer)
            return close(left, right) or self._rounds(left, right, gold, answer, Fraction(1))
        if left == right:
            return True
        return self._rounds(precise(left), precise(right), gold, answer, scale)

    def _identical(self, one: Node, two: Node, gold: Quantity, answer: Quantity) -> bool:
        self.method = "identity"
        try:
            return identical(one, two)
        except UnboundedError:
            return self.ask(gold, answer)

    def _rounds(self, left: Number, right: Number, gold: Quantity, answer: Quantity, scale: Fraction) -> bool:
        """Return whether one of two unequal numbers is the other one rounded, under the policy."""
        difference = abs(left - right)
        size = max(abs(left), abs(right))
        if self.params.tolerance and difference <= size * self.params.tolerance:
            return True
        if self.params.decimals is not None and difference <= precise(Fraction(1, 2 * 10**self.params.decimals)):
            return True
        literals = [quantity for quantity in (gold, answer) if quantity.decimals is not None]
        if not literals:
            return False
        if difference <= size * precise(Fraction(1, 10**12)):
            return any(quantity.digits >= 9 for quantity in literals)
        rounded = min(literals, key=lambda quantity: quantity.digits)
        unit = precise(Fraction(10) ** -(rounded.decimals or 0) * (scale if rounded is gold else 1))
        exact, short = (right, left) if rounded is gold else (left, right)
        cut = difference < unit and abs(short) < abs(exact)
        return rounded.digits >= self.params.digits and (cut or bool(difference <= unit / 2))


def precise(value: Fraction) -> Number:
    """Return a fraction as a 60-digit number."""
    return constant(Node("num", value=value))


def node_of(quantity: Quantity) -> Node:
    """Return the expression of a quantity.

    Raises:
        UndecidedError: when its text is outside the grammar.
    """
    if quantity.node is None:
        raise UndecidedError(quantity.source, quantity.source)
    return quantity.node
