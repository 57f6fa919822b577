"""Whether a text can stop after a step: one that only doubts, asks or announces leaves its reader waiting."""

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
    """Tell whether a step promises something that is not in it.

    Its last sentence decides: a question, one that trails off or leads in, talk about thinking, a doubt, or a
    check or new beginning that is announced and not carried out. A doubt that goes on to settle itself ("Wait, 3 + 4 is
    7. So x = 7.") leaves nothing open, nor does a yes or no, nor a sentence that states the answer, however it begins.
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
