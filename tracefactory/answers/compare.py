"""Compare two typed values as answers; the comparison is symmetric, except that an answer must be solved (`relations`).

Structure is compared first (a set is not a tuple, a point is not an interval), then the parts. When exact arithmetic
and identity testing cannot decide, `UndecidedError` is raised, and the caller may use a computer algebra system.
"""

from __future__ import annotations

import re
from collections.abc import Sequence as Many
from fractions import Fraction

from tracefactory.answers import regions, relations
from tracefactory.answers.chemistry import formula
from tracefactory.answers.normalize import squash
from tracefactory.answers.quantity_rules import MathParams, QuantityRules, Symbolic, UndecidedError, node_of
from tracefactory.answers.values import (
    Approximation,
    Clock,
    Day,
    Interval,
    Matrix,
    Quantity,
    Ratio,
    Reading,
    Region,
    Relation,
    Sequence,
    Text,
    Value,
)
from tracefactory.maths.expression import Node

PROSE_WORDS = 6
"""A gold answer with more words is prose: rules can confirm an equal text, but cannot reject a paraphrase."""


class ProseError(Exception):
    """Both answers are prose and differ, so rules cannot decide whether they mean the same."""


class Comparison:
    """One comparison of a gold answer with an answer; `method` is the rule that decided.

    Args:
        params: the policy of mathematical equivalence.
        symbolic: a comparison of two texts by computer algebra; None when there is none.
    """

    def __init__(self, params: MathParams, symbolic: Symbolic | None = None) -> None:
        self.params = params
        self.rules = QuantityRules(params, symbolic)
        self.method = "structure"

    def readings(self, gold: Reading, answer: Reading) -> bool:
        """Return whether any reading of the gold answer equals any reading of the answer.

        Raises:
            UndecidedError: when rules cannot decide and there is no computer algebra.
            ProseError: when both are prose and differ.
        """
        if squash(gold.text) == squash(answer.text) and self._letters_agree(gold, answer):
            self.method = "string"
            return True
        spellings = formula(gold.text)
        if spellings and (others := formula(answer.text)):
            self.method = "formula"
            return not spellings.isdisjoint(others)
        undecided: UndecidedError | None = None
        for left in gold.values:
            for right in answer.values:
                try:
                    if self.equal(left, right):
                        return True
                except UndecidedError as error:
                    undecided = undecided or error
        if undecided is not None:
            raise undecided
        values = (*gold.values[:1], *answer.values[:1])
        unparsed = [isinstance(value, Quantity) and value.node is None for value in values]
        if any(unparsed) and not all(unparsed) and not any(isinstance(value, Text | Clock | Day) for value in values):
            # one text is mathematics outside the grammar: computer algebra compares the texts
            return self._numbers(Quantity(gold.text, None), Quantity(answer.text, None))
        return False

    def _letters_agree(self, gold: Reading, answer: Reading) -> bool:
        """Return whether the letter case agrees where it matters: in mathematics, not in words or option letters."""
        one, two = (re.sub(r"[\s{}]", "", reading.text) for reading in (gold, answer))
        if one == two:
            return True
        return not any(isinstance(value, Quantity) and len(squash(gold.text)) == 1 for value in gold.values) and all(
            isinstance(value, Text | Clock | Day | Quantity) for value in gold.values
        )

    def equal(self, gold: Value, answer: Value) -> bool:
        """Return whether two values are the same answer.

        Raises:
            UndecidedError: when rules cannot decide and there is no computer algebra.
            ProseError: when both are prose and differ.
        """
        if isinstance(gold, Approximation) or isinstance(answer, Approximation):
            return self._approximations(gold, answer)
        if isinstance(gold, Relation) and isinstance(answer, Relation):
            return self._relations(gold, answer)
        if isinstance(gold, Relation):
            return self._relation_and_value(gold, answer, swapped=False)
        if isinstance(answer, Relation):
            return self._relation_and_value(answer, gold, swapped=True)
        if _is_region(gold) or _is_region(answer):
            return self._regions(gold, answer)
        if isinstance(gold, Matrix) or isinstance(answer, Matrix):
            return self._matrices(gold, answer)
        if isinstance(gold, Sequence) or isinstance(answer, Sequence):
            return self._sequences(gold, answer)
        if isinstance(gold, Clock | Ratio) or isinstance(answer, Clock | Ratio):
            return self._clocks_and_ratios(gold, answer)
        if isinstance(gold, Day) and isinstance(answer, Day):
            same_year = gold.year is None or answer.year is None or gold.year == answer.year
            return (gold.month, gold.day) == (answer.month, answer.day) and same_year
        if isinstance(gold, Text) or isinstance(answer, Text):
            return self._texts(gold, answer)
        if isinstance(gold, Quantity) and isinstance(answer, Quantity):
            return self._numbers(gold, answer)
        return False

    def _approximations(self, gold: Value, answer: Value) -> bool:
        """Compare by the exact sides; a decimal that agrees with the exact side beside it may be the answer, too."""
        if isinstance(gold, Approximation):
            return self.equal(gold.exact, answer) or self.equal(gold.decimal, answer)
        if not isinstance(answer, Approximation) or not relations.agree(answer):
            return False
        return self.equal(gold, answer.exact) or self.equal(gold, answer.decimal)

    # relations, regions ------------------------------------------------------------------------------------------

    def _relations(self, gold: Relation, answer: Relation) -> bool:
        if relations.same_chain(gold, answer, self.equal):
            return True
        if self.params.relations == "solved" and relations.is_solved(gold) and not relations.is_solved(answer):
            return False
        equations = [relations.is_equation(side) for side in (gold, answer)]
        values = [relations.named_value(side) for side in (gold, answer)]
        if all(equations):
            names = [relations.name_of(side) for side in (gold, answer)]
            if values[0] is not None and values[1] is not None and relations.names_match(names[0], names[1]):
                return self.equal(values[0], values[1])
        else:
            one, two = regions.spans_of(gold), regions.spans_of(answer)
            if one is not None and two is not None and relations.variables(gold) == relations.variables(answer):
                return regions.equal(one, two)
            if any(equations):
                left, right = (values[0] if equations[0] else gold), (values[1] if equations[1] else answer)
                if left is None or right is None or (isinstance(left, Relation) and isinstance(right, Relation)):
                    return False
                return self.equal(left, right)
        decided = relations.same_up_to_factor(gold, answer)
        if decided is not None:
            self.method = "identity"
            return decided
        if not all(equations) and max(len(gold.terms), len(answer.terms)) != 2:
            return False
        # a side is outside the grammar: computer algebra compares the relations
        return self._numbers(Quantity(relations.to_latex(gold), None), Quantity(relations.to_latex(answer), None))

    def _relation_and_value(self, relation: Relation, other: Value, *, swapped: bool) -> bool:
        """Compare a relation with a value that is not a relation; `swapped` when the value is the gold answer."""
        value = relations.named_value(relation)
        several = isinstance(other, Sequence) and other.kind in ("list", "set") and len(other.items) > 1
        if value is None and (relations.is_equation(relation) or (several and regions.spans_of(relation) is None)):
            return False
        if value is None:
            return self._regions(other, relation) if swapped else self._regions(relation, other)
        return self.equal(other, value) if swapped else self.equal(value, other)

    def _regions(self, gold: Value, answer: Value) -> bool:
        unsolved = isinstance(answer, Relation) and not relations.is_solved(answer)
        if unsolved and not isinstance(gold, Relation) and self.params.relations == "solved":
            return False
        one, two = regions.spans_of(gold), regions.spans_of(answer)
        if one is not None and two is not None:
            return regions.equal(one, two)
        return regions.same_as_written(gold, answer, self.equal)

    # several values ----------------------------------------------------------------------------------------------

    def _sequences(self, gold: Value, answer: Value) -> bool:
        one, two = _flat(gold), _flat(answer)
        if one is None or two is None:
            lone, other = (one, answer) if one is not None else (two, gold)
            if lone is None or not lone.items or (lone.kind != "list" and len(lone.items) != 1):
                return False
            return all(self.equal(item, other) for item in lone.items)  # `72/6 or 12` is 12
        named = [side.brackets.startswith("named:") for side in (one, two)]
        if all(named) and one.brackets != two.brackets:
            return False
        if any(named) and not all(named):
            return self._unordered(one.items, two.items, distinct=False)
        kinds = {one.kind, two.kind}
        if kinds == {"list", "tuple"}:
            one, two = _by_name(one), _by_name(two)
        if kinds == {"set", "tuple"}:
            return False
        if "tuple" in kinds or (kinds == {"list"} and self.params.ordered):
            return len(one.items) == len(two.items) and all(map(self.equal, one.items, two.items))
        return self._unordered(one.items, two.items, distinct="set" in kinds)

    def _unordered(self, gold: Many[Value], answer: Many[Value], *, distinct: bool) -> bool:
        if distinct or all(isinstance(item, Sequence) for item in (*gold, *answer)):
            gold, answer = self._distinct(gold), self._distinct(answer)  # points of a solution set
        if len(gold) != len(answer):
            return False
        left = list(answer)
        undecided: UndecidedError | None = None
        for item in gold:
            for index, other in enumerate(left):
                try:
                    if self.equal(item, other):
                        del left[index]
                        break
                except UndecidedError as error:
                    undecided = error
            else:
                if undecided is not None:
                    raise undecided
                return False
        return True

    def _distinct(self, items: Many[Value]) -> list[Value]:
        kept: list[Value] = []
        for item in items:
            if not any(self.equal(item, other) for other in kept):
                kept.append(item)
        return kept

    def _matrices(self, gold: Value, answer: Value) -> bool:
        one, two = _rows(gold), _rows(answer)
        kinds = [side.kind if isinstance(side, Matrix) else "" for side in (gold, answer)]
        if one is None or two is None or kinds[0] != kinds[1]:
            return False
        if [len(row) for row in one] != [len(row) for row in two]:
            if {len(one), len(two)} != {1, max(len(one), len(two))} or isinstance(gold, Matrix) is isinstance(
                answer, Matrix
            ):
                return False
            one, two = ([[value for row in rows for value in row]] for rows in (one, two))  # a row written as a tuple
            if len(one[0]) != len(two[0]):
                return False
        return all(
            self.equal(a, b) for left, right in zip(one, two, strict=True) for a, b in zip(left, right, strict=True)
        )

    # single values -----------------------------------------------------------------------------------------------

    def _clocks_and_ratios(self, gold: Value, answer: Value) -> bool:
        if isinstance(gold, Clock) and isinstance(answer, Clock):
            return _same_time(gold, answer)
        one, two = _ratio_parts(gold), _ratio_parts(answer)
        if one is not None and two is not None:
            return len(one) == len(two) and all(
                self._numbers(_cross(one[0], b), _cross(two[0], a)) for a, b in zip(one[1:], two[1:], strict=True)
            )
        parts, other = (one, answer) if one is not None else (two, gold)
        if parts is None or len(parts) != 2 or not isinstance(other, Quantity) or Clock in (type(gold), type(answer)):
            return False
        node = Node("div", (node_of(parts[0]), node_of(parts[1])))
        return self._numbers(Quantity("ratio", node), other)

    def _numbers(self, gold: Quantity, answer: Quantity) -> bool:
        same = self.rules.equal(gold, answer)
        self.method = self.rules.method
        return same

    def _texts(self, gold: Value, answer: Value) -> bool:
        self.method = "text"
        if not (isinstance(gold, Text) and isinstance(answer, Text)):
            return False
        one, two = _words(gold.text), _words(answer.text)
        if one == two:
            return True
        if one and two and one[0] == two[0] and one[0] in _YES_NO and 1 in (len(one), len(two)):
            return True
        if _YES_NO.get("".join(one)) is not None and _YES_NO.get("".join(one)) == _YES_NO.get("".join(two)):
            return True
        if (min(len(one), len(two)) >= 3 and max(len(one), len(two)) > PROSE_WORDS) or len(one) > PROSE_WORDS:
            raise ProseError
        return False


_YES_NO = {
    "yes": "yes",
    "true": "true",
    "correct": "true",
    "no": "no",
    "false": "false",
    "incorrect": "false",
    "是": "yes",
    "否": "no",
    "不是": "no",
    "对": "true",
    "正确": "true",
    "错": "false",
    "错误": "false",
}


def _is_region(value: Value) -> bool:
    if isinstance(value, Interval | Region):
        return True
    return (
        isinstance(value, Sequence)
        and len(value.items) > 0
        and all(isinstance(item, Relation) and not relations.is_equation(item) for item in value.items)
    )


def _flat(value: Value) -> Sequence | None:
    """Return a sequence with nested lists (from ± and `x = 1, 2`) flattened, None for a single value."""
    if not isinstance(value, Sequence):
        return None
    if value.kind == "tuple":
        return value
    items: list[Value] = []
    for item in value.items:
        inner = item
        if isinstance(item, Relation) and isinstance(relations.named_value(item), Sequence):
            inner = relations.named_value(item) or item
        if isinstance(inner, Sequence) and inner.kind == "list":
            items.extend(inner.items)
        else:
            items.append(item)
    return Sequence(value.kind, tuple(items), value.brackets)


def _by_name(value: Sequence) -> Sequence:
    """Sort `y = 3, x = 2` by its names, into the order of the point (x, y)."""
    named = [relations.name_of(item) for item in value.items if isinstance(item, Relation)]
    names = [name for name in named if name is not None and len(name) == 1]
    if value.kind != "list" or len(names) != len(value.items) or len(set(names)) != len(names):
        return value
    order = sorted(range(len(names)), key=names.__getitem__)
    return Sequence(value.kind, tuple(value.items[index] for index in order), value.brackets)


def _rows(value: Value) -> Many[Many[Value]] | None:
    if isinstance(value, Matrix):
        return value.rows
    if not isinstance(value, Sequence) or value.kind != "tuple":
        return None
    inner = [item.items for item in value.items if isinstance(item, Sequence) and item.kind == "tuple"]
    inner += [(item.low, item.high) for item in value.items if isinstance(item, Interval) and item.low and item.high]
    return inner if len(inner) == len(value.items) else [(item,) for item in value.items]


def _same_time(one: Clock, two: Clock) -> bool:
    if bool(one.half) == bool(two.half):
        return one.seconds == two.seconds
    bare = two if one.half else one
    if bare.seconds >= 13 * 3600:
        return one.seconds == two.seconds
    return (one.seconds - two.seconds) % 43200 == 0


def _ratio_parts(value: Value) -> tuple[Quantity, ...] | None:
    if isinstance(value, Ratio):
        return tuple(part for part in value.parts if isinstance(part, Quantity))
    if isinstance(value, Clock) and not value.half and value.seconds % 60 == 0:
        numbers = (value.seconds // 3600, value.seconds % 3600 // 60)
        return tuple(Quantity(str(number), Node("num", value=Fraction(number))) for number in numbers)
    return None


def _cross(one: Quantity, two: Quantity) -> Quantity:
    return Quantity(f"{one.source}*{two.source}", Node("mul", (node_of(one), node_of(two))))


def _words(text: str) -> list[str]:
    text = re.sub(r"[^\w\s\u4e00-\u9fff+-]", " ", text.casefold())
    text = re.sub(r"infinit(?:e|ely\s+many)(?:\s+\w+)?$|无(?:数|穷多)[个种组]?解?", "infinite", text)
    text = re.sub(r"周(?=[一二三四五六日天])|礼拜", "星期", text).replace("星期天", "星期日")
    return [word for word in text.split() if word not in ("the", "a", "an", "on")]
