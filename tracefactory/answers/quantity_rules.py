"""Numbers and expressions with units, percent signs and rounding: when two of them are the same answer."""

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
    identical,
    rational,
    symbols,
)
from tracefactory.maths.expression import Node


class UndecidedError(Exception):
    """Exact rules cannot tell; `left` and `right` are the texts of the parts they stopped at."""

    def __init__(self, left: str, right: str) -> None:
        super().__init__(f"{left} ? {right}")
        self.left, self.right = left, right


class MathParams(Frozen):
    """Policies of mathematical equivalence.

    `units`: whether an answer may leave out the unit of the gold answer (a different unit is always wrong).
    `convert_units`: whether 1 km equals 1000 m. `percent`: with "either", 12.5% equals both 12.5 and 0.125; with
    "strict" only 0.125. `ordered`: whether bare lists (`1, 2`) keep their order; tuples always do and sets never.
    `digits`: significant digits from which a decimal may stand for a number it rounds (or cuts) to. `decimals`: when
    given, the answer is right if it equals the gold answer after rounding to that many decimals. `tolerance`: relative
    difference that counts as equal.
    """

    units: Literal["optional", "required"] = "optional"
    convert_units: bool = True
    percent: Literal["either", "strict"] = "either"
    ordered: bool = False
    digits: int = Field(default=6, ge=1)
    decimals: int | None = Field(default=None, ge=0)
    tolerance: float = Field(default=0.0, ge=0, lt=1)


_DIGITS = re.compile(r"[\d\s]+")
Symbolic = Callable[[str, str], bool]
_DEGREE: Unit = UNITS["°"]
_RADIAN: Unit = UNITS["rad"]


class QuantityRules:
    """Compares quantities under a policy; `method` tells which rule decided last."""

    def __init__(self, params: MathParams, symbolic: Symbolic | None) -> None:
        self.params = params
        self.symbolic = symbolic
        self.method = "number"

    def equal(self, gold: Quantity, answer: Quantity) -> bool:
        if gold.node is None or answer.node is None:
            return self.ask(gold, answer)
        if not self._nouns_agree(gold, answer) or (gold.base is None) != (answer.base is None):
            return False
        scale = self._unit_scale(gold, answer)
        if scale is None:
            return self._as_symbols(gold, answer) or self._angle(gold, answer)
        if gold.percent == answer.percent:
            if self._same_number(gold, answer, scale):
                return True
            return self._as_symbols(gold, answer) or self._angle(gold, answer)
        hundredth = Fraction(1, 100)
        exact = hundredth if gold.percent else 1 / hundredth
        if self._same_number(gold, answer, scale * exact):
            return True
        return self.params.percent == "either" and self._same_number(gold, answer, scale)

    def ask(self, gold: Quantity, answer: Quantity) -> bool:
        """Ask computer algebra about two texts, or raise when there is none to ask."""
        if squash(gold.source) == squash(answer.source):
            return True
        if _DIGITS.fullmatch(gold.source) and _DIGITS.fullmatch(answer.source):
            return False  # `1 2` is no number, and not 12
        if self.symbolic is None:
            raise UndecidedError(gold.source, answer.source)
        self.method = "symbolic"
        return self.symbolic(gold.source, answer.source)

    def _nouns_agree(self, gold: Quantity, answer: Quantity) -> bool:
        if gold.nouns and answer.nouns:
            return bool(gold.nouns & answer.nouns)
        return not ((gold.nouns and answer.unit is not None) or (answer.nouns and gold.unit is not None))

    def _unit_scale(self, gold: Quantity, answer: Quantity) -> Fraction | None:
        """Return how many answer units one gold unit is; None when the units are of different kinds."""
        if gold.unit is None or answer.unit is None:
            symbolic = any(quantity.unit is None and symbols(node_of(quantity)) for quantity in (gold, answer))
            if symbolic and gold.unit is not answer.unit:
                return None
            if gold.unit is not None and answer.unit is None and not answer.percent and self.params.units == "required":
                return None
            return Fraction(1)
        if gold.unit.dimension != answer.unit.dimension:
            return None
        if gold.unit.factor != answer.unit.factor and not self.params.convert_units:
            return None
        return gold.unit.factor / answer.unit.factor

    def _as_symbols(self, gold: Quantity, answer: Quantity) -> bool:
        """Read unit letters as variables when that makes two expressions of the same variables."""
        if gold.as_symbols is None and answer.as_symbols is None:
            return False
        one, two = gold.as_symbols or node_of(gold), answer.as_symbols or node_of(answer)
        if gold.unit is not None and answer.unit is not None:
            return False
        return symbols(one) == symbols(two) and bool(symbols(one)) and self._identical(one, two, gold, answer)

    def _angle(self, gold: Quantity, answer: Quantity) -> bool:
        """An angle in degrees equals the same angle in radians, written with or without its unit."""
        for one, two in ((gold, answer), (answer, gold)):
            if one.unit == _DEGREE and (two.unit is None or two.unit == _RADIAN) and not symbols(node_of(one)):
                radians = Node("fn", (node_of(one),), name="degrees")
                if "pi" in _names(node_of(two)) and self._identical(radians, node_of(two), gold, answer):
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
            return self._same_constant(scaled, two, gold, answer)
        if left == right:
            return True
        return self._rounds(float_free(left), float_free(right), gold, answer, scale)

    def _same_constant(self, one: Node, two: Node, gold: Quantity, answer: Quantity) -> bool:
        try:
            left, right = constant(one), constant(two)
        except UnboundedError:
            return self.ask(gold, answer)
        return close(left, right) or self._rounds(left, right, gold, answer, Fraction(1))

    def _identical(self, one: Node, two: Node, gold: Quantity, answer: Quantity) -> bool:
        self.method = "identity"
        try:
            return identical(one, two)
        except UnboundedError:
            return self.ask(gold, answer)

    def _rounds(self, left: Number, right: Number, gold: Quantity, answer: Quantity, scale: Fraction) -> bool:
        """Whether one of two unequal numbers is the other one rounded, by the policy."""
        difference = abs(left - right)
        size = max(abs(left), abs(right))
        if self.params.tolerance and difference <= size * self.params.tolerance:
            return True
        if self.params.decimals is not None and difference <= float_free(Fraction(1, 2 * 10**self.params.decimals)):
            return True
        literals = [quantity for quantity in (gold, answer) if quantity.decimals is not None]
        if not literals or not size:
            return False
        if difference <= size * float_free(Fraction(1, 10**12)):
            return any(quantity.digits >= 9 for quantity in literals)
        rounded = min(literals, key=lambda quantity: quantity.digits)
        unit = float_free(Fraction(10) ** -(rounded.decimals or 0) * (scale if rounded is gold else 1))
        enough = rounded.digits >= self.params.digits or (rounded.digits >= 5 and (rounded.decimals or 0) >= 6)
        exact, short = (right, left) if rounded is gold else (left, right)
        cut = difference < unit and abs(short) < abs(exact)
        return bool(enough and (rounded.decimals or 0) >= 1 and (cut or difference <= unit / 2))


def float_free(value: Fraction) -> Number:
    """Return a fraction as a 60-digit number."""
    return constant(Node("num", value=value))


def node_of(quantity: Quantity) -> Node:
    if quantity.node is None:
        raise UndecidedError(quantity.source, quantity.source)
    return quantity.node


def _names(node: Node) -> frozenset[str]:
    own = frozenset((node.name,)) if node.op == "sym" else frozenset()
    return own.union(*(_names(arg) for arg in node.args))
