"""Equations and inequalities: labels of values (`x = 5`), and the equality of relations in different forms."""

from __future__ import annotations

import re
from collections.abc import Callable

from tracefactory.answers.normalize import squash
from tracefactory.answers.values import Quantity, Ratio, Relation, Value
from tracefactory.maths.evaluate import UnboundedError, proportional, symbols
from tracefactory.maths.expression import Node

_LETTER = r"(?:\\[a-zA-Z]+|[A-Za-z])(?:_(?:\{[^{}]*\}|\w))?'*"
_NAME = re.compile(
    rf"(?:{_LETTER}"
    rf"|{_LETTER}\s*\([\w\s,+\-\\]*\)"
    r"|\|?\s*(?:m?\s*\\?(?:angle|triangle|overline|vec)\s*)?\{?[A-Z]{1,4}\}?\s*\|?°?"
    rf"|\(\s*{_LETTER}(?:\s*,\s*{_LETTER})+\s*\)"
    rf"|{_LETTER}(?:\s*:\s*{_LETTER})+"
    r"|[a-w](?:\s*\+\s*[a-w])+"
    rf"|\\frac\s*\{{\s*(?:d\s*)?{_LETTER}\s*\}}\s*\{{\s*(?:d\s*)?{_LETTER}\s*\}}"
    r")\s*"
)
_FLIPPED = {"<": ">", ">": "<", "<=": ">=", ">=": "<=", "=": "=", "!=": "!=", "in": "in"}


def to_latex(relation: Relation) -> str:
    """Return a relation in LaTeX."""
    signs = {"<=": r"\le", ">=": r"\ge", "!=": r"\ne", "in": r"\in"}
    rest = (f" {signs.get(sign, sign)} {term}" for sign, term in zip(relation.signs, relation.sources[1:], strict=True))
    return relation.sources[0] + "".join(rest)


def is_equation(relation: Relation) -> bool:
    """Return whether every sign is an equals sign."""
    return all(sign == "=" for sign in relation.signs)


def name_of(relation: Relation) -> str | None:
    """Return the label on the left of a relation, such as `x`, `f(x)`, `AB` or "words"; None for other left sides."""
    left = relation.sources[0].strip()
    if _NAME.fullmatch(left):
        return re.sub(r"[\s{}]", "", left)
    if re.search(r"[A-Za-z]{3,}|[\u4e00-\u9fff]", re.sub(r"\\[a-zA-Z]+", "", left)) and not re.search(r"[\d=^]", left):
        return "words"
    return None


def named_value(relation: Relation) -> Value | None:
    """Return the value that a relation assigns to a name (`x = 5`, `x in [0, 1]`, `S = 3 + 2 = 5`), or None."""
    signs = set(relation.signs)
    if signs == {"in"} and len(relation.terms) == 2:
        return relation.terms[1]
    if signs != {"="}:
        return None
    if name_of(relation) is not None:
        return relation.terms[-1]
    last, first = relation.terms[-1], relation.terms[0]
    if isinstance(last, Quantity) and last.node is not None and last.node.op == "sym" and not isinstance(first, Ratio):
        return first if isinstance(first, Quantity) and not _has_symbols(first) else None  # 5 = x
    if all(isinstance(term, Quantity) and term.node is not None and not _has_symbols(term) for term in relation.terms):
        return last  # 2 + 3 = 5
    return None


def _has_symbols(value: Value) -> bool:
    return isinstance(value, Quantity) and value.node is not None and bool(symbols(value.node))


def names_match(one: str | None, two: str | None) -> bool:
    """Return whether two labels are compatible: the same name, words, or y and f(x)."""
    one, two = (None if name is None else re.sub(r"_.*", "", name) for name in (one, two))
    if one == two or "words" in (one, two):
        return True
    functions = [
        name is not None and (name == "y" or re.fullmatch(r"[fghy]\(\w\)", name) is not None) for name in (one, two)
    ]
    return all(functions)


def same_variable(one: Relation, two: Relation) -> bool:
    """Return whether two inequalities have the same variables."""
    return _variables(one) == _variables(two)


def _variables(relation: Relation) -> frozenset[str]:
    found: set[str] = set()
    for term in relation.terms:
        if isinstance(term, Quantity) and term.node is not None:
            found |= symbols(term.node)
    return frozenset(found)


def same_chain(one: Relation, two: Relation, equal: Callable[[Value, Value], bool]) -> bool:
    """Return whether two relations are equal term by term, in either direction."""
    if len(one.terms) != len(two.terms) or len(one.terms) > 6:
        return False
    signs = tuple(_FLIPPED[sign] for sign in reversed(two.signs))
    for terms, sources, others in (
        (two.terms, two.sources, two.signs),
        (two.terms[::-1], two.sources[::-1], signs),
    ):
        if one.signs != others:
            continue
        if all(squash(a) == squash(b) for a, b in zip(one.sources, sources, strict=True)):
            return True
        if len(one.terms) > 2 and all(map(equal, one.terms, terms)):
            return True
    return False


def difference(relation: Relation) -> Node | None:
    """Return left minus right for a relation of two expressions, None for other relations."""
    if len(relation.terms) != 2:
        return None
    left, right = relation.terms
    if not (isinstance(left, Quantity) and isinstance(right, Quantity)) or left.node is None or right.node is None:
        return None
    return Node("add", (left.as_symbols or left.node, Node("neg", (right.as_symbols or right.node,))))


def same_equation(one: Relation, two: Relation) -> bool | None:
    """Return whether two equations have proportional sides; None when their sides are outside the grammar."""
    left, right = difference(one), difference(two)
    if left is None or right is None:
        return None
    if symbols(left) != symbols(right):
        return False
    try:
        return proportional(left, right) is not None
    except UnboundedError:
        return None


def same_inequality(one: Relation, two: Relation) -> bool | None:
    """Return whether two inequalities are multiples of each other; a negative factor reverses the sign."""
    left, right = difference(one), difference(two)
    if left is None or right is None:
        return None
    try:
        factor = proportional(left, right)
    except UnboundedError:
        return None
    if factor is None or factor.imag:
        return False
    wanted = two.signs[0] if factor.real > 0 else _FLIPPED[two.signs[0]]
    return one.signs[0] == wanted
