"""Multiple choice: compare the stated letter, or the letter of the option whose content is stated."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import ClassVar

from pydantic import Field

from tracefactory.answers.compare import Comparison, ProseError
from tracefactory.answers.extract import extract_several
from tracefactory.answers.normalize import normalize, strip_markup
from tracefactory.answers.quantity_rules import MathParams, UndecidedError
from tracefactory.answers.reading import read
from tracefactory.answers.shapes import Shape
from tracefactory.core.rows import Outcome, Verdict
from tracefactory.verification.base import READS_MORE, ExtractParams, Verifier, VerifyTask, verifier

_LETTERS = re.compile(
    r"(?:option|choice|answer|选项)?\s*[:：]?\s*[(\[（{]?\s*([A-Z])\s*(?:[)\]）}.:：,，]|$|(?=正确|对)|\s+-\s|(?=\s*(?:and|or|,)\s))",
    re.IGNORECASE,
)
_SEVERAL = re.compile(r"[(\[]?[A-J][)\]]?(?:\s*(?:,|;|and|or|&|、|和|或)\s*(?:(?:and|or)\s*)?[(\[]?[A-J][)\]]?)+\.?")
_OPTION = re.compile(r"(?:^|[\s(（])[(（]?([A-J])\s*[)）.:：]\s*(.*?)(?=\s*[(（]?\b[A-J]\s*[)）.:：]|\n|$)", re.DOTALL)
_RUN = re.compile(r"[A-J]{2,6}")


OPTIONS = "The options in order, with or without their letters: A) 12 or 12. By default those in the question."


class ChoiceParams(ExtractParams):
    """The options of a question."""

    options: tuple[str, ...] = Field(default=(), description=OPTIONS)


@verifier
class ChoiceVerifier(Verifier):
    """Compare option letters; an answer that gives an option's content instead counts as its letter."""

    name = "choice"
    version = "3"
    changes: ClassVar[Mapping[str, str]] = {"3": READS_MORE + "; `A or B` is no choice of A"}
    Params = ChoiceParams

    def looks_like(self, task: VerifyTask) -> Shape:
        return "option"

    def quick(self, task: VerifyTask, params: ChoiceParams) -> Verdict | None:
        """Compare the stated letters, or the letter of the stated content, with those of the gold answer."""
        gold = letters(task.problem.answer or "")
        if not gold:
            method = "no_gold" if not (task.problem.answer or "").strip() else "gold_is_no_option"
            return self.verdict(Outcome.UNVERIFIABLE, method)
        stated = self.stated(task, params)
        if stated is None:
            return self.verdict(Outcome.UNVERIFIABLE, "no_answer")
        stated = extract_several(task.answer_text, stated) or stated
        chosen = letters(stated.value)
        method = "choice"
        if not chosen:
            chosen = by_content(stated.value, params.options or options_in(task.problem.question))
            method = "choice_content"
        if not chosen:
            return self.verdict(Outcome.UNVERIFIABLE, "no_option", stated)
        return self.compared(chosen == gold, method, stated, params)


def letters(text: str) -> frozenset[str]:
    """Return the option letters that a short answer names; empty when it names none."""
    spelled = strip_markup(normalize(strip_markup(text)))
    if _SEVERAL.fullmatch(spelled):
        return frozenset(re.findall(r"[A-J]", spelled))
    if _RUN.fullmatch(spelled) and list(spelled) == sorted(set(spelled)):
        return frozenset(spelled)
    match = _LETTERS.match(spelled)
    if match is None or (match[1].islower() and len(spelled) > 3):
        return frozenset()
    return frozenset(match[1].upper())


def options_in(question: str) -> tuple[str, ...]:
    """Return the options that a question lists as `(A) ... (B) ...`, in order; empty when it lists none."""
    found = _OPTION.findall(question)
    names = [name for name, _ in found]
    if len(names) < 2 or names != [chr(ord("A") + index) for index in range(len(names))]:
        return ()
    return tuple(content for _, content in found)


def by_content(answer: str, options: tuple[str, ...]) -> frozenset[str]:
    """Return the letter of the option that equals an answer.

    Args:
        answer: the answer.
        options: the contents of the options, in order.

    Returns:
        The letter; empty when no option or several options equal the answer.
    """
    reading = read(answer)
    matching = []
    for index, option in enumerate(options):
        content = re.sub(r"^\s*[(（]?[A-J]\s*[)）.:：]\s*", "", option)
        try:
            same = Comparison(MathParams()).readings(read(content), reading)
        except (UndecidedError, ProseError):
            continue
        if same:
            matching.append(chr(ord("A") + index))
    return frozenset(matching) if len(matching) == 1 else frozenset()
