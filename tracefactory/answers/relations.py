"""Equations and inequalities: labels of values (`x = 5`), and the equality of relations in different forms."""

from __future__ import annotations

import re
from collections.abc import Callable

from tracefactory.answers.normalize import squash
from tracefactory.answers.values import Approximation, Quantity, Relation, Value
from tracefactory.maths.evaluate import Number, UnboundedError, constant, proportional, symbols
from tracefactory.maths.expression import Node

_LETTER = r"(?:\\[a-zA-Z]+|[A-Za-z])(?:_(?:\{[^{}]*\}|\w))?'*"
_NAME = re.compile(
    rf"(?:{_LETTER}"
    rf"|{_LETTER}\s*\([\w\s,+\-\\]*\)"
    r"|\|?\s*(?:m?\s*\\?(?:angle|triangle|overline|vec)\s*)?\{?[A-Z]{1,4}\}?\s*\|?"
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
    left = relation.sources[0]
    if _NAME.fullmatch(left):
        return re.sub(r"\s", "", left)
    if re.search(r"[A-Za-z]{3,}|[\u4e00-\u9fff]", re.sub(r"\\[a-zA-Z]+", "", left)) and not re.search(r"[\d^]", left):
        return "words"
    return None


def named_value(relation: Relation) -> Value | None:
    """Return the value that a relation assigns to a name (`x = 5`, `x in [0, 1]`, `S = 3 + 2 = 5`), or None."""
    if relation.signs == ("in",):
        return relation.terms[1]
    if not is_equation(relation):
        return None
    if name_of(relation) is not None:
        return relation.terms[-1]
    last, first = relation.terms[-1], relation.terms[0]
    if isinstance(last, Quantity) and last.node is not None and last.node.op == "sym":
        return None if _variables_of(first) else first  # 5 = x
    if all(isinstance(term, Quantity) and term.node is not None and not _variables_of(term) for term in relation.terms):
        return last  # 2 + 3 = 5
    return None


def _variables_of(value: Value) -> frozenset[str]:
    return symbols(value.node) if isinstance(value, Quantity) and value.node is not None else frozenset()


def names_match(one: str | None, two: str | None) -> bool:
    """Return whether two labels are compatible: the same name, words, or y and f(x)."""
    one, two = (None if name is None else re.sub(r"_.*", "", name) for name in (one, two))
    if one == two or "words" in (one, two):
        return True
    return all(re.fullmatch(r"y|[fghy]\(\w\)", name or "") for name in (one, two))


def is_solved(relation: Relation) -> bool:
    """Return whether a relation gives a variable by constants: `x = 3`, `x > 4`, `-2 \\le x < 7`, `x \\in [0, 1]`.

    A relation with other variables in its terms, such as `y = 2x + 1`, counts as solved for none.
    """
    names = [source.strip("-| ") for source in relation.sources]
    bare = [_NAME.fullmatch(name) is not None and name not in (r"\infty", r"\pi") for name in names]
    others = [term for term, named in zip(relation.terms, bare, strict=True) if not named]
    return sum(bare) == 1 and not any(_variables_of(term) - {"infty"} for term in others)


def variables(relation: Relation) -> frozenset[str]:
    """Return the names of the variables in a relation."""
    return frozenset().union(*map(_variables_of, relation.terms))


def same_chain(one: Relation, two: Relation, equal: Callable[[Value, Value], bool]) -> bool:
    """Return whether two relations are equal term by term, in either direction.

    Args:
        one: a relation.
        two: a relation.
        equal: the comparison of two terms.
    """
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


def same_up_to_factor(one: Relation, two: Relation) -> bool | None:
    """Return whether two equations, or two relations that are none, are multiples of each other.

    A negative factor reverses the sign of an inequality. The result is None when a side is outside the grammar or
    cannot be evaluated.
    """
    left, right = difference(one), difference(two)
    if left is None or right is None:
        return None
    equations = is_equation(one)
    if symbols(left) != symbols(right):
        return False
    try:
        factor = proportional(left, right)
    except UnboundedError:
        return None
    if factor is None or equations:
        return factor is not None
    return not factor.imag and one.signs[0] == (two.signs[0] if factor.real > 0 else _FLIPPED[two.signs[0]])


def agree(value: Approximation) -> bool:
    """Return whether a decimal is its exact value to within a unit of its last digit, or to 1%."""
    exact, decimal = (_constant(side) for side in (value.exact, value.decimal))
    if exact is None or decimal is None:
        return True
    places = (value.decimal.decimals or 0) if isinstance(value.decimal, Quantity) else 0
    return bool(abs(exact - decimal) <= max(abs(exact) / 100, 10.0**-places))


def _constant(value: Value | None) -> Number | None:
    if isinstance(value, Relation):
        return _constant(named_value(value))
    if not isinstance(value, Quantity) or value.node is None or value.unit is not None or value.percent:
        return None
    try:
        return constant(value.node)
    except UnboundedError:
        return None
