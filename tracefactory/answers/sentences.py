"""Divide a text into statements, and tell mathematics from words."""

from __future__ import annotations

import re
from dataclasses import dataclass

from tracefactory.answers.formulas import FORMULA
from tracefactory.answers.normalize import strip_markup
from tracefactory.answers.reading import read
from tracefactory.answers.relations import is_equation, name_of
from tracefactory.answers.values import (
    Approximation,
    Clock,
    Day,
    Interval,
    Matrix,
    Quantity,
    Ratio,
    Region,
    Relation,
    Sequence,
    Text,
    Value,
)

_END = re.compile(
    r"\n\s*\n|(?<![\d\s])(?<!\bRs)(?<!\bNo)(?<!\bSt)(?<!\bDr)(?<!\bMr)(?<!\bMrs)(?<!\bca)(?<!\bsq)(?<!\bapprox)\.(?=\s|$)"
    r"|(?<=\d)\.(?=\s|$|\*)(?!\s+(?:Jan|Feb|Mär|Apr|Mai|Jun|Jul|Aug|Sep|Okt|Nov|Dez)[a-zä]*\b)|[!?](?=\s|$)(?<!\d!)|。|！|？|\n(?=\S)|；"
)
_SENTENCE = re.compile(
    r"(?<=[.!?])\s+(?=[A-Z\\$*#(∴]|[a-z]\s*=)|(?<=[。！？])|\n+"
    r"|(?<=[.!?]\$)\s+(?=[A-Z])|(?<=[.!?][)\"”])\s+(?=[A-Z])|(?<=[.!?]\$\$)\s*(?=[A-Z])|(?<=[.!?]\\[\])])\s*(?=[A-Z])"
)
FENCE = re.compile(r"\s*```[a-zA-Z]*\s*\n(.*?)\n?\s*```", re.DOTALL)
_LEAD = re.compile(
    r"(?:[}\s:：,，→⇒✅👉✔️🎉∴]|=>|⟹|->|\*+|\\(?:therefore|implies|Rightarrow|quad|qquad)(?![a-zA-Z])|"
    r"(?:therefore|thus|hence|so|then|now|here|finally|consequently|overall|accordingly|and|that\s+is|i\.e\.|in\s+(?:conclusion|summary|total|all)|"
    r"we\s+(?:get|have|obtain|find|conclude|see|know)(?:\s+that)?|(?:this|it|which)\s+(?:gives|means|follows|yields|implies)(?:\s+(?:us|that))*|"
    r"it\s+is|it's|there\s+(?:is|are|were|was|will\s+be)|simply|just|indeed)(?![\w'])|"
    r"综上所述|综上|因此|所以|于是|从而|最终|即|故|则|得)+",
    re.IGNORECASE,
)
_TAIL = re.compile(
    r"(?:[\s,，;✅✓✔️🎉😊☑*]|(?<=\s)[a-z]{0,3}\.{2,}|,?\s*(?:as\s+(?:required|desired|needed|claimed|expected|"
    r"stated|requested|the\s+(?:final\s+)?answer)|"
    r"(?:in\s+total|altogether|in\s+all|overall|respectively)(?=\W*$)\.?|as\s+(?:was\s+)?to\s+be\s+(?:shown|proved)|です|"
    r"입니다|QED|∎|□|■|\\(?:blacksquare|square|Box|qed)))+$",
    re.IGNORECASE,
)
_ASIDE = re.compile(r"\s+\((?![^()]*\bbase\b)(?=(?>[^()$\\]*?[A-Za-z]{2})[^()$\\]*? )[^()$\\]*+\)$")
_ENGLISH = re.compile(
    r"\b(?!(?:sin|cos|tan|log|exp|max|min|sqrt)\b)[A-Za-z]{3,} +[A-Za-z]{2,}|"
    r"\b(?:therefore|thus|hence|answer|solution)\b",
    re.I,
)
_NOT_A_SENTENCE = re.compile(
    r"(?:I hope (?:it|this) is correct|I hope this helps|Let me know.*|"
    r"[-*_=#\s]+|\\(?:end|begin)\{\w+\*?\}|\\\]|\$\$)[.!]?",
    re.IGNORECASE,
)
_LONGEST_TAIL = 120
_MAX_STATEMENT = 600
_BULLET = re.compile(r"\s*\n[ \t]*[-*•+][ \t]+")


@dataclass(frozen=True)
class Span:
    """A [start, end) range of characters."""

    start: int
    end: int


def statement_end(text: str, start: int) -> int:
    """Return the end of the statement at `start`: the end of its sentence or line, never inside a formula."""
    fence = FENCE.match(text, start)
    if fence:
        return fence.end()
    position = start
    furthest = min(len(text), start + _MAX_STATEMENT)
    while position < furthest and (text[position].isspace() or text[position] in "*:"):
        position += 1
    for math in FORMULA.finditer(text, position, position + _MAX_STATEMENT):
        end = _END.search(text, position, max(furthest, math.start()) + 1)
        if end is not None and end.start() < math.start():
            break
        position = math.end()
    end = _END.search(text, position, max(furthest, position) + 1)
    return min(end.start() if end else len(text), start + _MAX_STATEMENT)


def last_sentences(text: str, count: int) -> list[Span]:
    """Return the last sentences, last first, without closing courtesies such as "I hope this helps".

    Args:
        text: the text.
        count: the number of sentences.
    """
    spans: list[Span] = []
    end = len(text)
    tail = max(0, len(text) - 4000)
    starts = [tail, *(match.end() for match in _SENTENCE.finditer(text, tail))]
    for start in reversed(starts):
        piece = text[start:end].strip()
        if piece and not _NOT_A_SENTENCE.fullmatch(piece):
            spans.append(Span(start, end))
            if len(spans) == count:
                break
        end = start
    return spans


def bare(text: str, span: Span) -> Span:
    """Return a range without the connectives, emphasis and remarks in brackets before and after its value.

    Args:
        text: the text.
        span: the range.
    """
    start, end = span.start, span.end
    bullet = _BULLET.match(text, start, end)
    if bullet:
        start = bullet.end()
    lead = _LEAD.match(text, start, end)
    if lead and lead.end() < end:
        start = lead.end()
    tail = _TAIL.search(text, max(start + 1, end - _LONGEST_TAIL), end)
    if tail:
        end = tail.start()
    aside = _ASIDE.search(text, max(start + 1, end - _LONGEST_TAIL), end)
    if aside and is_value(text[start : aside.start()]):
        end = aside.start()
    return Span(start, end)


def is_formula(piece: str) -> bool:
    """Return whether a text has only signs and symbols and no words; its parts are then no answers by themselves."""
    return not re.search(
        r"[A-Za-z]{3,}|[\u4e00-\u9fff]|[=:]", re.sub(r"\\(?:text|mathrm|mbox)\s*\{[^{}]*\}|\\[a-zA-Z]+", "", piece)
    )


def is_value(piece: str) -> bool:
    """Return whether a text is mathematics and not words."""
    if len(piece) > 400:
        return False
    stripped = strip_markup(piece)
    if not stripped:
        return False
    reading = read(stripped)
    return bool(reading.values) and _mathematical(reading.values[0], stripped)


def _mathematical(value: Value, source: str) -> bool:
    match value:
        case Text():
            return False
        case Quantity():
            if value.node is None and value.unit is None:
                return (
                    not re.search(r"[\u4e00-\u9fff]", source)
                    and bool(re.search(r"\\(?:frac|int|sum|sqrt|begin|lim|prod|log)|\d", source))
                    and not re.search(r"[A-Za-z]{3} [A-Za-z]{2}", source)
                )
            return True
        case Sequence():
            return not value.items or all(_mathematical(item, source) for item in value.items)
        case Relation():
            if name_of(value) == "words":
                return False  # "the total = 12": only the right side is a value
            labelled = is_equation(value) and name_of(value) is not None
            return not any(
                isinstance(term, Text) or _ENGLISH.search(re.sub(r"\\[a-zA-Z]+", "", source))
                for term, source in list(zip(value.terms, value.sources, strict=True))[1 if labelled else 0 :]
            )
        case Approximation():
            return _mathematical(value.exact, source)
        case Interval() | Region() | Matrix() | Clock() | Day() | Ratio():
            return True
