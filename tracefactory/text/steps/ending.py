"""Decide whether a text can end after a step; it cannot after a mere doubt, question or announcement."""

from __future__ import annotations

import re
from itertools import pairwise

from tracefactory.text.steps.classify import classify, states_answer
from tracefactory.text.steps.model import StepKind
from tracefactory.text.steps.protect import protected
from tracefactory.text.steps.rules import CONFIRMS
from tracefactory.text.steps.sentences import sentence_starts

_TRAILS_OFF = re.compile(r"(?:[?？:：,，…]|\.{3})[\"'”’」』)\]*_]*\Z")
_ANSWERS = re.compile(r"\A\W*(?:(?:no|nope|yes|yeah)\b|不是|不，|是的|对的|没错)", re.IGNORECASE)
_RESULT = re.compile(r"[=≈≡<>≤≥]|\\(?:approx|equiv|leq?|geq?)\b")


def leaves_open(step: str) -> bool:
    """Return whether a step announces something that it does not contain.

    The last sentence decides: a question, an unfinished sentence or a lead-in, talk about thinking, a doubt, or a check
    or restart that is announced but not carried out leaves the step open. A doubt that is then resolved ("Wait, 3 + 4
    is 7. So x = 7."), a yes or no, and a sentence that states the answer do not.
    """
    bare = step.strip()
    spans = [(span.start, span.end) for span in protected(bare)]
    bounds = [0, *sentence_starts(bare, 0, len(bare), spans), len(bare)]
    sentences = [sentence for start, end in pairwise(bounds) if (sentence := bare[start:end].strip())]
    if not sentences:
        return True
    last = sentences[-1]
    if _TRAILS_OFF.search(last):
        return True
    if states_answer(last) or _ANSWERS.match(last):
        return False
    kind, _ = classify(last)
    if kind in (StepKind.VERIFICATION, StepKind.RESTART):
        return not (_RESULT.search(last) or CONFIRMS.search(last))
    return kind in (StepKind.REFLECTION, StepKind.FILLER)
