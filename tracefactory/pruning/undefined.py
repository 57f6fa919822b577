"""Find kept text that uses a name or an intermediate value that only the cut text defines.

"Then 35 + 7 = 42" is no derivation when "5 * 7 = 35" was cut, and "so 2x = 84" none when "let x be the price" was cut.
The rules err towards a fault: a trace that is not pruned costs tokens, a derivation with a hole is taught. They do not
find everything: a cut value that occurs elsewhere by coincidence counts as defined, integers below 10 and powers of ten
count only where the cut text calculates them and the kept text calculates with them, and the letters a and I are no
names. `tracefactory.pruning.conclusion` asks a student for the rest.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise

from tracefactory.pruning.base import PruneItem, PruneResult
from tracefactory.pruning.dangling import QUOTE
from tracefactory.text.steps.sentences import sentence_starts

_NUMBER = re.compile(r"(?<![\w.])(?:\d+(?:,\d{3})*(?:\.\d+)?|\.\d+)(?![\d_])")
# What precedes the result of a calculation, and what shows that there is one.
_RESULT = re.compile(
    r"(?:[=≈]|\\approx|\b(?:is|are|equals?|gives?|get|makes?|leaves?|totals?|becomes?)\b|[是为得])"
    r"[\s$\\({[*]*(?:(?:about|only|just|exactly|boxed)\b)?[\s$\\({[*€£-]*\Z",
    re.IGNORECASE,
)
_OPERATOR = re.compile(
    r"[-+*/×·÷^−%√]|\\(?:times|cdot|div|[dt]?frac|sqrt|pm|binom)"
    r"|\b(?:plus|minus|times|divided|half|twice|double|triple|sum|difference|product|quotient|add|subtract|multipl\w+)\b",
    re.IGNORECASE,
)
_BEFORE_OPERAND = re.compile(r"(?:[-+*/×·÷−–(]|\\(?:times|cdot|div))[\s$€£]*\Z")
_AFTER_OPERAND = re.compile(r"[\s$%]*(?:[a-z]+ )?(?:[-+*/×·÷−–]|\\(?:times|cdot|div))")
_LETTER = r"(?<![A-Za-z\\_'’])(?P<name>[B-HJ-Zb-z](?:_(?:\w|\{\w+\}))?)(?![A-Za-z'’])"
_USE = re.compile(_LETTER)
_DEFINITION = re.compile(
    rf"\b(?:let|define|denote|call|set|suppose|assume|say|where|with)\b[^.;\n]{{0,80}}?{_LETTER}"
    rf"|{_LETTER.replace('name', 'assigned')}(?:\([a-z]\))?[\s$]*(?::=|=|\b(?:be|denotes?|represents?|stands)\b)"
    rf"|(?:设|令|记)[^。;；\n]{{0,40}}?{_LETTER.replace('name', 'chinese')}",
    re.IGNORECASE,
)
_UNIT = re.compile(r"\d[\s$]*(?:\\,|\\ )?\Z")
_REACH = 80  # characters before a number or name in which its equals sign, operator or unit is searched


@dataclass
class _Known:
    """Values and names of a part of the text."""

    values: set[str] = field(default_factory=set)
    names: set[str] = field(default_factory=set)


def undefined(item: PruneItem, result: PruneResult) -> str | None:
    """Return the first kept sentence that uses what only the cut text defines, quoted with the reason, or None.

    The question and kept text above define values by their occurrence. A value is defined, too, where a sentence
    calculates it ("5 * 7 = 35"). Added text and the answer text are not examined.

    Args:
        item: the parent in steps.
        result: the steps that are kept.
    """
    above, cut, kept = _Known(), _Known(), set(result.kept)
    question = item.trace.problem.question
    above.values.update(value for _, value in _values(question))
    above.names.update(match["name"] for match in _USE.finditer(question))
    for step in item.steps:
        text = item.step(step.index)
        if step.index not in kept:
            cut.values.update(
                value for match, value in _values(text) if not _is_common(value) or _calculated(text, match)
            )
            cut.names.update(_defined(text))
        elif fault := _fault(text, above, cut):
            return fault
    return None


def _fault(text: str, above: _Known, cut: _Known) -> str | None:
    """Check one part of the text, and add it to the text above the next part."""
    for start, end in pairwise([0, *sentence_starts(text, 0, len(text), ()), len(text)]):
        sentence = text[start:end]
        for match, value in _values(sentence):
            unknown = value in cut.values and value not in above.values
            if unknown and (_is_operand(sentence, match) if _is_common(value) else not _calculated(sentence, match)):
                return f"{value} was cut: {_quoted(sentence)}"
            above.values.add(value)
        above.names.update(_defined(sentence))
        for match in _USE.finditer(sentence):
            name = match["name"]
            unit = _UNIT.search(_before(sentence, match))
            if name in cut.names and name not in above.names and not unit:
                return f"the definition of {name} was cut: {_quoted(sentence)}"
    return None


def _values(text: str) -> Iterator[tuple[re.Match[str], str]]:
    """Yield the numbers of a text with their values."""
    for match in _NUMBER.finditer(text):
        digits = match.group().replace(",", "")
        yield match, digits.rstrip("0").rstrip(".") if "." in digits else digits


def _is_common(value: str) -> bool:
    """Return whether a value occurs without a definition: an integer below 10, or a power of ten."""
    return len(value) == 1 or value.rstrip("0") == "1"


def _defined(text: str) -> Iterator[str]:
    return (match["name"] or match["assigned"] or match["chinese"] for match in _DEFINITION.finditer(text))


def _calculated(sentence: str, value: re.Match[str]) -> bool:
    """Return whether a value is the result of a calculation in its sentence."""
    return bool(_RESULT.search(_before(sentence, value)) and _OPERATOR.search(sentence, 0, value.start()))


def _before(sentence: str, match: re.Match[str]) -> str:
    """Return what precedes a match closely, so that a long sentence with many numbers takes linear time."""
    return sentence[max(0, match.start() - _REACH) : match.start()]


def _is_operand(sentence: str, value: re.Match[str]) -> bool:
    """Return whether a sentence calculates with a value."""
    return bool(_BEFORE_OPERAND.search(_before(sentence, value)) or _AFTER_OPERAND.match(sentence, value.end()))


def _quoted(sentence: str) -> str:
    return " ".join(sentence.split())[:QUOTE]
