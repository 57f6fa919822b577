"""An extracted answer: its text, its place, its form, and the confidence that goes with the form."""

from __future__ import annotations

import re
from dataclasses import dataclass

from tracefactory.answers.boxes import Box
from tracefactory.answers.formulas import complete
from tracefactory.answers.normalize import strip_markup
from tracefactory.answers.sentences import Span, bare

CONFIDENCE = {
    "field": 1.0,
    "boxed": 1.0,
    "boxes": 1.0,
    "whole": 1.0,
    "tagged": 1.0,
    "fenced": 0.9,
    "value": 1.0,
    "announced": 0.95,
    "label": 0.9,
    "weakly_announced": 0.9,
    "last_line": 0.8,
    "table": 0.8,
    "concluded": 0.6,
    "mentioned": 0.5,
    "sentence": 0.4,
    "step": 0.2,
}
"""How sure it is that a text in this form is the answer, in an order that was measured (docs/verdicts.md)."""
_DELIMITED = re.compile(r"\$\$([^$]+)\$\$|\$([^$]+)\$|\\\(((?:(?!\\\)).)+)\\\)|\\\[((?:(?!\\\]).)+)\\\]", re.DOTALL)
NO_KNOWLEDGE = re.compile(
    r"\W*(?:i\s+(?:do\s+not|don['’]?t)\s+know|(?:i['’]?m\s+|i\s+am\s+)?(?:not\s+sure|unsure)|idk|null|n/a|tbd|\?+|i\s+can(?:no|['’])t\b.*)\W*",
    re.IGNORECASE,
)
QUESTIONS = re.compile(
    r"\b(?:wait|hold\s+on|hmm+|alternatively|on\s+second\s+thought|but\s+(?:maybe|let|that|is|what|how|then|wait)|"
    r"let\s+me\s+(?:re-?)?(?:check|verify|think|consider|double|try|see|recompute|reconsider)|let's\s+(?:check|verify|re)|"
    r"i\s+made\s+a\s+mistake|that's\s+(?:not|wrong)|which\s+contradicts)\b|不对|等等|等一下|再检查|重新|另外|换一种|让我",
    re.IGNORECASE,
)
ENDS = tuple(".!?。！？}])$`*\"'>)）】”")


@dataclass(frozen=True)
class Extraction:
    """An extracted answer: its text, the [start, end) range of that text, and how it was stated (`CONFIDENCE`).

    `boxes` are all boxes up to the chosen one; the last `adjacent` of them are next to each other. `parts` are the
    contents of several boxes that form one answer. `decoded` is the value of a JSON field without its escapes.
    """

    text: str
    start: int
    end: int
    how: str
    boxes: tuple[Box, ...] = ()
    adjacent: int = 1
    parts: tuple[str, ...] = ()
    decoded: str = ""

    @property
    def value(self) -> str:
        """The value to compare: the text, the contents of several boxes as a list, or a decoded field."""
        return ", ".join(self.parts) or self.decoded or self.text

    @property
    def confidence(self) -> float:
        """How sure it is that this is the answer, between 0 and 1; a form that a verifier found itself is sure."""
        return CONFIDENCE.get(self.how, 1.0)


def extraction(body: str, span: Span, how: str) -> Extraction:
    return Extraction(body[span.start : span.end], span.start, span.end, how)


def finished(text: str) -> bool:
    """Return whether an extracted text can be a whole answer: complete as mathematics, or words."""
    inner = strip_markup(text)
    return complete(inner) or re.search(r"[^\W\d_]{2,}", re.sub(r"\\[a-zA-Z]+", "", inner)) is not None


def trimmed(body: str, span: Span, *, spoken: bool = True) -> Span:
    """Shrink a range as `strip_markup` would. In a `spoken` sentence, `3!` is 3 with an exclamation mark."""
    span = bare(body, span)
    text = body[span.start : span.end]
    inner = strip_markup(text)
    if spoken and re.fullmatch(r"\d+!", text.strip()):
        inner = inner[:-1]
    delimited = _DELIMITED.fullmatch(inner)
    if delimited:
        inner = next(group for group in delimited.groups() if group is not None).strip()
    at = text.find(inner)
    if not inner or at < 0:
        return span
    return Span(span.start + at, span.start + at + len(inner))
