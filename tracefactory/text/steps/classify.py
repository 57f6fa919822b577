"""Classify the steps of a text by rules, in order. A step that confirms the check before it belongs to the check."""

from __future__ import annotations

import re
from collections.abc import Iterable

from tracefactory.text.steps.model import StepKind
from tracefactory.text.steps.rules import CONFIRMS, FAILS, HEDGE, OPENING, RULES, Rule, is_filler

REACH = 160  # characters around a cue in which the ends of its sentence are searched
_BREAK = re.compile(r"[.!?](?=\s|\Z)|[。！？]|\n")
_ASIDE = re.compile(r"\b(?:because|since|even (?:if|though)|although|though|whereas)\b|因为|虽然|尽管", re.IGNORECASE)
_TURNS = (StepKind.VERIFICATION, StepKind.REFLECTION, StepKind.RESTART, StepKind.CONCLUSION)


def classify(step: str, before: StepKind | None = None) -> tuple[StepKind, str]:
    """Classify one step.

    The opening has priority, so "Wait, let me check that again" is a check and "Wait, the answer is 5?" a doubt. A step
    that confirms the check before it belongs to the check. A hedged sentence is not a conclusion.

    Args:
        step: the text of the step.
        before: the kind of the step before it.

    Returns:
        The kind of the step, and the name of the rule that matched.
    """
    if is_filler(step):
        return StepKind.FILLER, "idle"
    opening = step.lstrip()[:OPENING]
    for rule in RULES:
        if rule.pattern.search(opening) if not rule.anywhere else _matches(rule, step):
            return rule.kind, rule.name
    if before is StepKind.VERIFICATION and CONFIRMS.search(step) and not FAILS.search(step):
        return StepKind.VERIFICATION, "check_confirmed"
    return StepKind.DERIVATION, "no_rule"


def classify_all(steps: Iterable[str]) -> list[tuple[StepKind, str]]:
    """Classify the steps of one text, in order."""
    found: list[tuple[StepKind, str]] = []
    for step in steps:
        found.append(classify(step, found[-1][0] if found else None))
    return found


def turns(sentence: str) -> bool:
    """Return whether a sentence starts a new step: a check, a doubt, a restart or a conclusion."""
    return classify(sentence)[0] in _TURNS


def states_answer(sentence: str) -> bool:
    """Return whether a sentence states the answer, whatever its opening; a guess or a question does not."""
    return any(_matches(rule, sentence) for rule in RULES if rule.anywhere)


def _matches(rule: Rule, text: str) -> bool:
    return any(rule.certain or not hedged(text, match.start()) for match in rule.pattern.finditer(text))


def hedged(text: str, at: int) -> bool:
    """Return whether a sentence is hedged ("maybe", "if", a question).

    A hedge in a remark or reason after the position ("..., even if it looks odd", "because ...") does not count.

    Args:
        text: the text.
        at: a position in the sentence.
    """
    before, after = text[max(0, at - REACH) : at], text[at : at + REACH]
    aside = _ASIDE.search(after)
    after = after[: aside.start()] if aside else after
    end = _BREAK.search(after)
    start = max((match.end() for match in _BREAK.finditer(before)), default=0)
    return bool(HEDGE.search(before[start:] + (after[: end.end()] if end else after)))
