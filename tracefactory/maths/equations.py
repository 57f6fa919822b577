"""Solve systems of equations exactly with sympy.

Use this only in a process that may be killed, because sympy has no limits.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from tracefactory.maths.expression import Node
from tracefactory.maths.tokens import UnparsedError

Equation = tuple[Node, Node]
"""The two sides of an equation."""

_MOST_DEGREE = 4  # sympy solves up to quartics by radicals
_DIGITS = 50
_ROUNDING = 1e-30  # of the imaginary part of a real value, relative

_OPERATIONS: Mapping[str, Callable[..., Any]] = {
    "add": operator.add,
    "mul": operator.mul,
    "div": operator.truediv,
    "pow": operator.pow,
    "neg": operator.neg,
}


@dataclass(frozen=True)
class Values:
    """The distinct real values of an unknown, irrational ones to 30 digits, and whether these are certainly all."""

    found: tuple[Fraction, ...]
    complete: bool


def values_of(unknown: str, equations: Sequence[Equation]) -> Values | None:
    """Return the values of one unknown over the solutions of a system of equations.

    sympy finds all solutions of one polynomial equation, and of polynomial systems of low degree; of others it can miss
    some, without a word.

    Args:
        unknown: the name of the unknown.
        equations: the two sides of each equation.

    Returns:
        The values; None when the equations do not determine the unknown.

    Raises:
        UnparsedError: for an expression other than arithmetic and square roots, such as sin, a binomial or 1/0.
    """
    import sympy

    sides = [(_expression(left), _expression(right)) for left, right in equations]
    wanted = sympy.Symbol(unknown)
    system = _shorter([sympy.Eq(*pair) for pair in sides], wanted)
    if sympy.false in system:
        return Values((), complete=True)  # a contradiction
    free = sorted({name for one in system for name in one.free_symbols}, key=str)
    if wanted not in free:
        return None
    degree = _degree(system, free)
    if degree is not None and free == [wanted] and len(system) == 1:
        solutions = [{wanted: root} for root in sympy.real_roots(sympy.Poly(system[0].lhs - system[0].rhs, wanted))]
        complete = True
    else:
        solutions = sympy.solve(system, free, dict=True)
        complete = degree is not None and degree <= _MOST_DEGREE
    found: list[Fraction] = []
    for solution in solutions:
        value = solution.get(wanted)
        if value is None or value.free_symbols:
            return None
        real, imaginary = value.evalf(_DIGITS).as_real_imag()  # roots by radicals are real up to rounding
        if not (real.is_finite and imaginary.is_finite):
            complete = False
        elif abs(imaginary) <= _ROUNDING * (1 + abs(real)):
            exact = Fraction(str(value if value.is_Rational else real.evalf(30)))
            found += [] if exact in found else [exact]
    return Values(tuple(found), complete)


def _shorter(system: Sequence[Any], kept: Any) -> list[Any]:
    """Return an equivalent system for `kept`: other names that a single equation gives are replaced by their values."""
    import sympy

    left = [one for one in system if one is not sympy.true]
    while sympy.false not in left:
        given = (one for one in left if one.free_symbols not in ({kept}, set()) and len(one.free_symbols) == 1)
        defining = next((one for one in given if _degree([one], list(one.free_symbols)) == 1), None)
        if defining is None:
            return left
        (name,) = defining.free_symbols
        (value,) = sympy.solve(defining, name)
        left = [one for one in (other.subs(name, value) for other in left) if one is not sympy.true]
    return left


def _degree(system: Sequence[Any], free: Sequence[Any]) -> int | None:
    """Return a bound on the number of solutions: the product of the degrees; None unless all are polynomials."""
    import sympy

    degrees = []
    for one in system:
        difference = one.lhs - one.rhs
        if not difference.is_polynomial(*free):
            return None
        degrees.append(max(1, sympy.Poly(difference, *free).total_degree()))
    return int(math.prod(degrees))


def symbols_of(equations: Sequence[Equation]) -> frozenset[str]:
    """Return the names that occur in equations."""
    return frozenset().union(*(side.names() for sides in equations for side in sides))


def _expression(node: Node) -> Any:
    import sympy

    if node.op == "num":
        return sympy.Rational(node.value.numerator, node.value.denominator)
    if node.op == "sym":
        return sympy.Symbol(node.name)
    arguments = [_expression(one) for one in node.args]
    if node.op == "fn" and node.name == "sqrt":
        return sympy.sqrt(*arguments)
    if node.op not in _OPERATIONS:
        raise UnparsedError(f"{node.name or node.op} in an equation")
    operation = _OPERATIONS[node.op]
    value = functools.reduce(operation, arguments) if len(arguments) > 1 else operation(*arguments)
    if value.has(sympy.zoo, sympy.nan):
        raise UnparsedError("a division by zero in an equation")
    return value
