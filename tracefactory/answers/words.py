"""Compare answers in words: names, identifiers, dates, chemical formulas, written plainly or with LaTeX around them."""

from __future__ import annotations

import re

from tracefactory.answers.chemistry import formula
from tracefactory.answers.literals import read_clock, read_day
from tracefactory.answers.normalize import strip_markup

_COMMAND = re.compile(r"\\(?:text(?:bf|it|rm|tt|sf)?|math(?:rm|bf|it|tt|sf)|mbox|operatorname|ce|emph)\s*\{([^{}]*)\}")
_SCRIPT = re.compile(r"[_^]\{([^{}]*)\}|[_^](?=\w)")


def plain(text: str) -> str:
    """Return an answer without Markdown and LaTeX marks: `\\text{H}_2\\text{O}` becomes `H2O`; other texts are kept."""
    text = strip_markup(text)
    if "\\" not in text and "$" not in text:
        return text
    text = text.strip("$ ")
    for _ in range(4):
        text, changed = _COMMAND.subn(r"\1", text)
        if not changed:
            break
    return strip_markup(_SCRIPT.sub(lambda match: match[1] or "", text).replace("\\_", "_"))


def same_thing(gold: str, answer: str) -> bool:
    """Return whether two texts name the same date, time of day or chemical formula in different spellings."""
    one, two = plain(gold), plain(answer)
    days = read_day(one), read_day(two)
    if days[0] is not None and days[0] == days[1]:
        return True
    clocks = read_clock(one), read_clock(two)
    if clocks[0] is not None and clocks[0] == clocks[1]:
        return True
    return bool(formula(gold) & formula(answer))
