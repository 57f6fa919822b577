"""Evaluate expressions: exactly as a fraction where they are rational, else to 60 digits.

Two expressions count as identical when they agree at random points (Schwartz 1980, Zippel 1979; here with high-
precision numbers instead of finite fields, so that roots and elementary functions are covered). A difference at one
point is a proof; agreement at all points to 45 digits is not, but no false identity has been observed to pass.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from fractions import Fraction
from functools import lru_cache
from math import comb, factorial
from typing import Any

import mpmath  # type: ignore[import-untyped]

from tracefactory.maths.expression import Node

DIGITS = 60
TOLERANCE_DIGITS = 45
_MAX_BITS = 1 << 15
_MAX_LOG10 = 1e9

_HUGE_LOG10 = 1e8

_mp = mpmath.MPContext()
_mp.dps = DIGITS


class IrrationalError(ValueError):
    """The expression has no rational value, or one that is too large."""


class UnboundedError(ValueError):
    """The expression cannot be evaluated within the size limits, or has no value at this point."""


def rational(node: Node) -> Fraction:
    """Return the exact value of a closed rational expression.

    Raises:
        IrrationalError: for variables, irrational roots, and numbers of more than 32768 bits.
    """
    match node.op:
        case "num":
            return _bounded(node.value)
        case "neg":
            return -rational(node.args[0])
        case "add":
            return _bounded(rational(node.args[0]) + rational(node.args[1]))
        case "mul":
            return _bounded(rational(node.args[0]) * rational(node.args[1]))
        case "div":
            below = rational(node.args[1])
            if not below:
                raise IrrationalError("division by zero")
            return _bounded(rational(node.args[0]) / below)
        case "pow":
            return _rational_power(rational(node.args[0]), rational(node.args[1]))
        case "fn":
            return _rational_function(node)
    raise IrrationalError(node.op)


def _bounded(value: Fraction) -> Fraction:
    if value.numerator.bit_length() > _MAX_BITS or value.denominator.bit_length() > _MAX_BITS:
        raise IrrationalError("too large")
    return value


def _rational_power(base: Fraction, exponent: Fraction) -> Fraction:
    if exponent.denominator != 1:
        if exponent == Fraction(1, 2):
            return _root(base, 2)
        raise IrrationalError("a fractional power")
    power = exponent.numerator
    if base in (0, 1, -1):
        if base == 0 and power <= 0:
            raise IrrationalError("a power of zero")
        return base ** (power % 2 if base == -1 else min(power, 1) if power >= 0 else 1)
    size = max(base.numerator.bit_length(), base.denominator.bit_length())
    if abs(power) > _MAX_BITS or size * abs(power) > _MAX_BITS:
        raise IrrationalError("too large")
    return base**power


def _root(value: Fraction, degree: int) -> Fraction:
    """Return a rational root, found by bisection of numerator and denominator."""
    if value < 0 or not 2 <= degree <= 64:
        raise IrrationalError("a root")
    roots = []
    for whole in (value.numerator, value.denominator):
        low, high = 0, 1 << (whole.bit_length() // degree + 1)
        while low < high:
            middle = (low + high + 1) // 2
            if middle**degree <= whole:
                low = middle
            else:
                high = middle - 1
        if low**degree != whole:
            raise IrrationalError("an irrational root")
        roots.append(low)
    return Fraction(*roots)


def _rational_function(node: Node) -> Fraction:
    values = [rational(arg) for arg in node.args]
    first = values[0]
    whole = all(value.denominator == 1 for value in values)
    match node.name:
        case "sqrt":
            return _root(first, 2)
        case "root" if whole and values[1] > 1:
            return _root(first, int(values[1]))
        case "abs":
            return abs(first)
        case "floor":
            return Fraction(first.__floor__())
        case "ceil":
            return Fraction(first.__ceil__())
        case "factorial" if whole and 0 <= first <= 500:
            return Fraction(factorial(int(first)))
        case "binom" if whole and 0 <= values[1] <= first <= 2000:
            return Fraction(comb(int(first), int(values[1])))
        case "min":
            return min(values)
        case "max":
            return max(values)
        case "exp" | "ln" | "log" | "sin" | "tan" if first == (1 if node.name in ("ln", "log") else 0):
            return Fraction(int(node.name == "exp"))
    raise IrrationalError(node.name)


Number = Any
"""An mpmath real or complex number."""


def numeric(node: Node, at: Mapping[str, Number]) -> Number:
    """Return the value of `node` to 60 digits, with its variables taken from `at`.

    Raises:
        UnboundedError: when it has no value at this point or is too large to compute quickly.
    """
    try:
        value = _numeric(node, at)
    except (ZeroDivisionError, ValueError, OverflowError, TypeError, KeyError) as error:
        raise UnboundedError(str(error)) from error
    if not _mp.isfinite(value):
        raise UnboundedError("not finite")
    return value


def _numeric(node: Node, at: Mapping[str, Number]) -> Number:
    match node.op:
        case "num":
            return _mp.mpf(node.value.numerator) / node.value.denominator
        case "sym":
            return at[node.name]
        case "neg":
            return -_numeric(node.args[0], at)
        case "add":
            return _numeric(node.args[0], at) + _numeric(node.args[1], at)
        case "mul":
            return _numeric(node.args[0], at) * _numeric(node.args[1], at)
        case "div":
            return _numeric(node.args[0], at) / _numeric(node.args[1], at)
        case "pow":
            return _power(_numeric(node.args[0], at), _numeric(node.args[1], at))
    return _function(node.name, [_numeric(arg, at) for arg in node.args])


def _power(base: Number, exponent: Number) -> Number:
    if base == 0:
        return _mp.mpf(0) ** exponent
    if abs(exponent) * (1 + abs(_mp.log(abs(base)))) > _MAX_LOG10:
        raise UnboundedError("too large")
    return base**exponent


def _function(name: str, args: list[Number]) -> Number:
    first = args[0]
    match name:
        case "degrees":
            return first * _mp.pi / 180
        case "root":
            real = _mp.im(first) == 0 and first < 0 and args[1] % 2 == 1
            return -_mp.root(-first, int(args[1])) if real else _power(first, 1 / args[1])
        case "log_base":
            return _mp.log(first) / _mp.log(args[1])
        case "factorial" | "binom" if abs(first) > 1e6:
            raise UnboundedError("too large")
        case "factorial":
            return _mp.gamma(first + 1)
        case "binom":
            return _mp.binomial(*args)
        case "abs":
            return abs(first)
        case "exp" if abs(first) > _MAX_LOG10:
            raise UnboundedError("too large")
        case "min":
            return min(args)
        case "max":
            return max(args)
    found = {"arcsin": "asin", "arccos": "acos", "arctan": "atan", "sgn": "sign"}.get(name, name)
    if found in ("gcd", "lcm", "det") or (found in ("sin", "cos", "tan") and abs(first) > 1e12):
        raise UnboundedError(found)
    return getattr(_mp, found)(*args)


INFINITY: Number = _mp.inf


def number(value: int) -> Number:
    """Return an integer as a 60-digit number."""
    return _mp.mpf(value)


CONSTANTS: Mapping[str, Number] = {"pi": +_mp.pi, "e": +_mp.e, "i": _mp.mpc(0, 1), "infty": _mp.inf}


@lru_cache(maxsize=4096)
def symbols(node: Node) -> frozenset[str]:
    """Return the names of the variables in `node`."""
    return node.names().difference(CONSTANTS)


def constant(node: Node) -> Number:
    """Return the value of an expression without variables, to 60 digits.

    Raises:
        UnboundedError: when it has no value or is too large to compute quickly.
    """
    return numeric(node, CONSTANTS)


def huge(node: Node) -> bool:
    """Return whether an expression certainly has an absolute value beyond what is computed here, as `9^{9^9}`."""
    match node.op:
        case "neg":
            return huge(node.args[0])
        case "pow":
            base, exponent = node.args
            try:
                value = constant(base)
                if value.imag or value < 2:
                    return False
                return huge(exponent) or bool(constant(exponent) * _mp.log10(value) > _HUGE_LOG10)
            except UnboundedError:
                return huge(exponent)
        case "fn" if node.name == "factorial":
            try:
                value = constant(node.args[0])
            except UnboundedError:
                return huge(node.args[0])
            return not value.imag and bool(value > 10**6)
    return False


def close(left: Number, right: Number, digits: int = TOLERANCE_DIGITS) -> bool:
    """Return whether two numbers agree to `digits` digits, relative to the larger of them and 1e-6.

    An infinite number agrees only with itself.
    """
    if not (_mp.isfinite(left) and _mp.isfinite(right)):
        return bool(left == right)
    scale = max(abs(left), abs(right), _mp.mpf("1e-6"))
    return bool(abs(left - right) <= scale * _mp.mpf(10) ** -digits)


def identical(left: Node, right: Node) -> bool:
    """Return whether two expressions are the same function of their variables.

    Raises:
        UnboundedError: when both sides have a value at too few points.
    """
    if not symbols(left) and not symbols(right):
        return close(constant(left), constant(right))
    return proportional(left, right, factor=_mp.mpf(1)) is not None


def proportional(left: Node, right: Node, *, factor: Number | None = None) -> Number | None:
    """Return the constant c with left = c * right for all values of the variables.

    Args:
        left: an expression.
        right: an expression.
        factor: the only c to try; None for any.

    Returns:
        The constant, None when there is no such constant or it is zero.

    Raises:
        UnboundedError: when both sides have a value at too few points.
    """
    names = sorted(symbols(left) | symbols(right))
    positive_only = _has_branch(left) or _has_branch(right)
    source = random.Random(20261)
    ratio = factor
    seen = 0
    for trial in range(14):
        at = dict(CONSTANTS)
        for name in names:
            sign = -1 if trial % 2 and not positive_only and source.random() < 0.7 else 1
            at[name] = sign * _mp.mpf(source.randrange(10**6, 10 ** (9 if trial % 3 else 7))) / 10**8
        try:
            one, two = numeric(left, at), numeric(right, at)
        except UnboundedError:
            continue
        if ratio is None:
            if not two or not one:
                return None
            ratio = one / two
        if not close(one, ratio * two):
            return None
        seen += 1
        if seen == 6:
            return ratio
    if seen < 3:
        raise UnboundedError("too few points with a value on both sides")
    return ratio


def _has_branch(node: Node) -> bool:
    """Return whether a root, logarithm or fractional power of a variable occurs, which needs positive points."""
    if node.op == "fn" and node.name in ("sqrt", "root", "ln", "log", "log_base"):
        return bool(symbols(node))
    if node.op == "pow" and symbols(node):
        try:
            if rational(node.args[1]).denominator != 1:
                return True
        except IrrationalError:
            return True
    return any(_has_branch(arg) for arg in node.args)
