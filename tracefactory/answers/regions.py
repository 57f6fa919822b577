"""Sets of real numbers, written as intervals, unions, inequalities or points, as sorted disjoint spans."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from tracefactory.answers.relations import difference
from tracefactory.answers.values import Quantity, Region, Relation, Sequence, Value, as_interval, infinite
from tracefactory.maths.evaluate import (
    CONSTANTS,
    INFINITY,
    Number,
    UnboundedError,
    close,
    constant,
    number,
    numeric,
    symbols,
)
from tracefactory.maths.expression import Node


@dataclass(frozen=True)
class Span:
    """One interval with numeric ends; a point is a closed interval of no length."""

    low: Number
    high: Number
    low_closed: bool
    high_closed: bool

    def empty(self) -> bool:
        """Return whether the interval contains no number."""
        return bool(self.low > self.high) or (close(self.low, self.high) and not (self.low_closed and self.high_closed))


_APPLIED = re.compile(r"(?<![A-Za-z\\])[a-zA-Z]\s*\(")
"""A function application such as `f(2)`, which is not a product to solve for f."""
ALL = (Span(-INFINITY, INFINITY, False, False),)


def spans_of(value: Value) -> tuple[Span, ...] | None:
    """Return the set of reals that a value denotes, as sorted disjoint spans; None when it cannot be determined."""
    interval = as_interval(value)
    spans: tuple[Span, ...] | None = None
    if interval is not None:
        low = -INFINITY if interval.low is None else _number(interval.low)
        high = INFINITY if interval.high is None else _number(interval.high)
        if low is not None and high is not None and low <= high:  # (4, -7) is a point
            spans = (Span(low, high, interval.low_closed, interval.high_closed),)
    elif isinstance(value, Relation):
        spans = _solved(value)
    elif isinstance(value, Region):
        spans = _from_region(value)
    elif isinstance(value, Sequence) and value.kind != "tuple":
        spans = _from_items(value)
    return None if spans is None else _merged(spans)


def _from_region(region: Region) -> tuple[Span, ...] | None:
    found: list[Span] = []
    for part in region.parts:
        spans = spans_of(part)
        if spans is None:
            return None
        found.extend(spans)
    result = _merged(tuple(found))
    for value in region.without:
        point = _number(value)
        if point is None:
            return None
        result = _intersection(result, (Span(-INFINITY, point, False, False), Span(point, INFINITY, False, False)))
    return result


def _from_items(value: Sequence) -> tuple[Span, ...] | None:
    if value.items and all(isinstance(item, Relation) for item in value.items):
        parts = [spans_of(item) for item in value.items]
        known = [part for part in parts if part is not None]
        if len(known) != len(parts):
            return None
        if value.brackets == "or":
            return tuple(span for part in known for span in part)
        result = known[0]
        for part in known[1:]:
            result = _intersection(result, part)
        return result
    points = [_number(item) for item in value.items]
    if any(point is None for point in points):
        return None
    return tuple(Span(point, point, True, True) for point in points)


def _number(value: Value) -> Number | None:
    if not isinstance(value, Quantity) or value.node is None:
        return None
    try:
        number = constant(value.node)
    except UnboundedError:
        return None
    return None if number.imag else number.real


def _solved(relation: Relation) -> tuple[Span, ...] | None:
    """Solve a chain of linear relations in one variable."""
    if relation.signs == ("in",):
        return spans_of(relation.terms[1])
    if any(_APPLIED.search(source) for source in relation.sources):
        return None
    absolute = _absolute(relation)
    if absolute is not None:
        return _from_items(absolute)
    result: tuple[Span, ...] = ALL
    for index, sign in enumerate(relation.signs):
        pair = Relation(relation.terms[index : index + 2], (sign,), relation.sources[index : index + 2])
        spans = _half_line(pair)
        if spans is None:
            return None
        result = _intersection(result, spans)
    return result


def _absolute(relation: Relation) -> Sequence | None:
    """Rewrite `|u| < c` as -c < u and u < c, and `|u| > c` as u < -c or u > c."""
    if len(relation.terms) != 2 or relation.signs[0][0] not in "<>":
        return None
    one, two = relation.terms
    if not (isinstance(one, Quantity) and isinstance(two, Quantity)) or one.node is None or two.node is None:
        return None
    sign, flip = relation.signs[0], {"<": ">", ">": "<"}
    if two.node.name == "abs":
        one, two, sign = two, one, flip[sign[0]] + sign[1:]
    if one.node is None or two.node is None or one.node.name != "abs":
        return None
    inner = Quantity(one.source, one.node.args[0])
    below = Relation((inner, Quantity(two.source, Node("neg", (two.node,)))), (flip[sign[0]] + sign[1:],), ("", ""))
    return Sequence("list", (below, Relation((inner, two), (sign,), ("", ""))), "or" if sign[0] == ">" else "")


def _half_line(relation: Relation) -> tuple[Span, ...] | None:
    if any(isinstance(term, Quantity) and infinite(term) for term in relation.terms):
        return ALL  # `x < infinity` holds for every real number
    node = difference(relation)
    if node is None or len(symbols(node)) != 1:
        return None
    (name,) = symbols(node)
    try:
        values = [numeric(node, {**CONSTANTS, name: number(at)}) for at in (0, 1, -3, 5)]
    except UnboundedError:
        return None
    slope = values[1] - values[0]
    if any(value.imag for value in values) or not slope:
        return None
    if not (close(values[2] - values[0], -3 * slope) and close(values[3] - values[0], 5 * slope)):
        return None
    root = -values[0].real / slope.real
    sign = relation.signs[0]
    if sign == "=":
        return (Span(root, root, True, True),)
    if sign == "!=":
        return (Span(-INFINITY, root, False, False), Span(root, INFINITY, False, False))
    closed = sign.endswith("=")
    if (sign[0] == "<") == (slope.real > 0):
        return (Span(-INFINITY, root, False, closed),)
    return (Span(root, INFINITY, closed, False),)


def _merged(spans: tuple[Span, ...]) -> tuple[Span, ...]:
    ordered = sorted((span for span in spans if not span.empty()), key=lambda span: (span.low, not span.low_closed))
    merged: list[Span] = []
    for span in ordered:
        last = merged[-1] if merged else None
        touches = last is not None and (
            (span.low < last.high and not close(span.low, last.high))
            or (close(span.low, last.high) and (span.low_closed or last.high_closed))
        )
        if last is None or not touches:
            merged.append(span)
            continue
        if close(span.high, last.high):
            merged[-1] = Span(last.low, last.high, last.low_closed, last.high_closed or span.high_closed)
        elif span.high > last.high:
            merged[-1] = Span(last.low, span.high, last.low_closed, span.high_closed)
    return tuple(merged)


def _intersection(one: tuple[Span, ...], two: tuple[Span, ...]) -> tuple[Span, ...]:
    found = []
    for a in one:
        for b in two:
            low, high = max(a.low, b.low), min(a.high, b.high)
            low_closed = all(span.low_closed for span in (a, b) if close(span.low, low))
            high_closed = all(span.high_closed for span in (a, b) if close(span.high, high))
            span = Span(low, high, low_closed, high_closed)
            if not span.empty():
                found.append(span)
    return tuple(found)


def equal(one: tuple[Span, ...], two: tuple[Span, ...]) -> bool:
    """Return whether two sets of reals, as sorted disjoint spans, are equal."""
    return len(one) == len(two) and all(
        close(a.low, b.low) and close(a.high, b.high) and (a.low_closed, a.high_closed) == (b.low_closed, b.high_closed)
        for a, b in zip(one, two, strict=True)
    )


def same_as_written(gold: Value, answer: Value, equal_values: Callable[[Value, Value], bool]) -> bool:
    """Compare intervals whose ends are not numbers, such as (-a, 0), end by end.

    Args:
        gold: the gold answer.
        answer: the answer.
        equal_values: the comparison of two ends.
    """
    one, two = as_interval(gold), as_interval(answer)
    if one is not None and two is not None:
        if (one.low_closed, one.high_closed) != (two.low_closed, two.high_closed):
            return False
        ends = ((one.low, two.low), (one.high, two.high))
        return all(
            (a is None and b is None) or (a is not None and b is not None and equal_values(a, b)) for a, b in ends
        )
    if isinstance(gold, Region) and isinstance(answer, Region) and len(gold.parts) == len(answer.parts):
        return all(map(equal_values, gold.parts, answer.parts)) and all(map(equal_values, gold.without, answer.without))
    return False
