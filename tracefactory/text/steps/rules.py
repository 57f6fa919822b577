"""The rules that classify a step, in order of priority. Each has a name, a kind and readable cues.

Some rules search the opening of a step, which announces its purpose; others search the whole step. The first rule that
matches decides; without a match, the step is a derivation.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise

from tracefactory.text.steps import cues, leads
from tracefactory.text.steps.model import StepKind
from tracefactory.text.steps.sentences import sentence_starts

OPENING = 200  # characters of a step that count as its opening
MAX_FILLER = 200  # characters; longer steps are not filler

_FLAGS = re.IGNORECASE | re.MULTILINE
_MARKS = r"[\s*_>#\"“'(\[.…-]*+(?:(?:step\s+)?\d{1,2}[.):]\s*)?[*_]*+"  # markdown, quotes, numbers before a word
_PAUSE = r"\b[,.!\s…-]*+"


def _either(words: tuple[str, ...]) -> str:
    return f"(?:{'|'.join(words)})"


_SAID = f"(?:{_either(leads.INTERJECTIONS)}{_PAUSE}){{0,5}}"
_MEANT = rf"(?:{_either(leads.INTENTIONS)}\s+)?(?:{_either(leads.ADVERBS)}\s+){{0,3}}"
_HEAD = rf"\A{_MARKS}{_SAID}{_MEANT}"
_HEAD_ZH = rf"\A[\s*_>#（(【\d.、-]*+(?:{_either(leads.LEAD_ZH)}[，,。、…\s]*+){{0,6}}"
_DOUBT_HEAD = rf"\A{_MARKS}(?:(?:but|so|okay|and|oh|no|hm+|yes){_PAUSE}){{0,3}}"


@dataclass(frozen=True)
class Rule:
    """`pattern` is searched in the opening of a step, or in the whole step when `anywhere`.

    A match anywhere counts when its sentence is not hedged, or always when `certain`.
    """

    name: str
    kind: StepKind
    pattern: re.Pattern[str]
    anywhere: bool = False
    certain: bool = False


def _compile(*patterns: str) -> re.Pattern[str]:
    return re.compile("|".join(patterns), _FLAGS)


RULES: tuple[Rule, ...] = (
    Rule(
        "check_announced",
        StepKind.VERIFICATION,
        _compile(
            rf"{_HEAD}{_either(cues.CHECK)}",
            rf"{_HEAD}check\s+{_either(cues.LOOKS_BACK)}\b",
            f"{_HEAD_ZH}{_either(cues.CHECK_ZH)}",
        ),
    ),
    Rule(
        "start_again",
        StepKind.RESTART,
        _compile(
            rf"{_HEAD}{_either(cues.RESTART)}",
            r"\b(?:let me|let's|i'll|i should) (?:start over|start again|restart|try (?:again|another|a different))\b",
            f"{_HEAD_ZH}{_either(cues.RESTART_ZH)}",
        ),
    ),
    Rule(
        "doubt",
        StepKind.REFLECTION,
        _compile(
            rf"{_DOUBT_HEAD}{_either(cues.DOUBT)}",
            rf"\A[\s*_>（(“]*+(?:(?:嗯|哦|啊|但是?|不过)[，,。…\s]*+)*+{_either(cues.DOUBT_ZH)}",
        ),
    ),
    Rule("boxed", StepKind.CONCLUSION, _compile(*cues.BOXED), anywhere=True, certain=True),
    Rule("states_answer", StepKind.CONCLUSION, _compile(*cues.ANSWER), anywhere=True),
)

HEDGE = _compile(*cues.HEDGES)
CONFIRMS = _compile(*cues.CONFIRMS)  # a successful check; used only after a verification step
FAILS = _compile(*cues.FAILS)  # a failed check, or one with a correction, which is part of the derivation

_CONTENT = re.compile(r"[\d=<>≤≥\\$+×÷√∑∫`]|(?<!['’])\b[b-hj-z]\b", re.IGNORECASE)
_WORD = re.compile(r"[^\W\d_]")
_IDLE = re.compile(
    rf"\A{_MARKS}{_SAID}(?:{_MEANT}{_either(cues.IDLE)})?[\s.!…*_]*\Z|\A{_either(cues.IDLE_ZH)}+\Z", re.IGNORECASE
)


def is_filler(step: str) -> bool:
    """Return whether a step is short, without numbers, formulas or variables, and only talks about thinking."""
    bare = step.strip()
    if len(bare) > MAX_FILLER:
        return False
    if not _WORD.search(bare):
        return not any(character.isalnum() for character in bare)
    if _CONTENT.search(bare):
        return False
    bounds = [0, *sentence_starts(bare, 0, len(bare), ()), len(bare)]
    return all(_IDLE.match(bare[start:end].strip()) for start, end in pairwise(bounds))
