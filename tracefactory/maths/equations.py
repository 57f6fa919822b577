"""Solve systems of equations exactly with sympy.

Use this only in a process that may be killed, because sympy has no limits.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any

from tracefactory.maths.expression import Node
from tracefactory.maths.tokens import UnparsedError

Equation = tuple[Node, Node]
"""The two sides of an equation."""

_OPERATIONS: Mapping[str, Callable[..., Any]] = {
    "add": operator.add,
    "mul": operator.mul,
    "div": operator.truediv,
    "pow": operator.pow,
    "neg": operator.neg,
}


def values_of(unknown: str, equations: Sequence[Equation]) -> list[Fraction] | None:
    """Return the distinct real values of one unknown over all solutions of a system of equations.

    Args:
        unknown: the name of the unknown.
        equations: the two sides of each equation.

    Returns:
        The values, irrational ones to 30 digits; None when the equations do not determine the unknown.

    Raises:
        UnparsedError: for an expression other than arithmetic and square roots, such as sin or a binomial.
    """
    import sympy

    system = [sympy.Eq(_expression(left), _expression(right)) for left, right in equations]
    wanted = sympy.Symbol(unknown)
    free = sorted({symbol for one in system for symbol in getattr(one, "free_symbols", ())}, key=str)
    found: list[Fraction] = []
    for solution in sympy.solve(system, free, dict=True):
        value = solution.get(wanted)
        if value is None or value.free_symbols:
            return None
        if value.is_real:
            exact = Fraction(str(value if value.is_Rational else value.evalf(30)))
            found += [] if exact in found else [exact]
    return found


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
    return functools.reduce(_OPERATIONS[node.op], arguments) if len(arguments) > 1 else _OPERATIONS[node.op](*arguments)
