"""Answers compared as strings, as free text and as numbers with a tolerance."""

from __future__ import annotations

import json
import re
import string
import unicodedata
from collections import Counter
from fractions import Fraction
from typing import Literal

from pydantic import Field

from tracefactory.answers.extract import Extraction
from tracefactory.answers.normalize import strip_markup
from tracefactory.answers.reading import read
from tracefactory.answers.relations import named_value
from tracefactory.answers.values import Quantity, Reading, Relation, Value
from tracefactory.core.schema import Outcome, Verdict
from tracefactory.maths.evaluate import UnboundedError, constant
from tracefactory.verification.base import ExtractParams, Verifier, VerifyTask, stated_answer
from tracefactory.verifiers.math import gold_reading


class ExactParams(ExtractParams):
    """`case`: whether case counts. `whole`: compare all of the text, not a stated answer in it."""

    case: bool = True
    whole: bool = False


class TextParams(ExtractParams):
    """How free text is compared.

    `match`: `equal` compares normalised words; `contains` asks for the gold words in a row; `f1` asks for a word
    overlap of at least `min_f1` (SQuAD, Rajpurkar et al. 2016). `any_of`: further right answers besides the gold.
    """

    match: Literal["equal", "contains", "f1"] = "equal"
    min_f1: float = Field(default=0.8, gt=0, le=1)
    any_of: tuple[str, ...] = ()


class NumericParams(ExtractParams):
    """Largest differences that count as equal: `abs_tol` absolute, `rel_tol` relative to the gold answer."""

    abs_tol: float = Field(default=0.0, ge=0)
    rel_tol: float = Field(default=1e-6, ge=0, lt=1)


def _ends(task: VerifyTask, params: ExtractParams, *, whole: bool) -> Extraction | None:
    """Return the stated answer, or all of a short finished text when it is asked for or nothing is announced."""
    stated = None if whole else stated_answer(task, bare=params.bare)
    text = task.answer_text.strip()
    if stated is not None or not text or (task.cut_off and not params.bare):
        return stated
    if not whole and (len(text) > 200 or "\n" in text):
        return None
    start = task.answer_text.index(text)
    return Extraction(text, start, start + len(text), "whole")


class ExactVerifier(Verifier):
    """Compare strings after trimming, Unicode normalisation and runs of white space."""

    name = "exact"
    version = "2"
    Params = ExactParams

    def quick(self, task: VerifyTask, params: ExactParams) -> Verdict | None:
        gold = task.problem.answer
        if gold is None:
            return self.verdict(Outcome.UNVERIFIABLE, "no_gold")
        stated = _ends(task, params, whole=params.whole)
        if stated is None:
            return self.verdict(Outcome.UNVERIFIABLE, "no_answer")
        forms = [
            _spaced(text) if params.case else _spaced(text).casefold()
            for text in (gold, strip_markup(stated.text), stated.text)
        ]
        return self.verdict(Outcome.CORRECT if forms[0] in forms[1:] else Outcome.INCORRECT, "exact", stated)


def _spaced(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", text).split())


class TextVerifier(Verifier):
    """Compare free text by its words, without case, punctuation and articles."""

    name = "text"
    version = "2"
    Params = TextParams

    def quick(self, task: VerifyTask, params: TextParams) -> Verdict | None:
        golds = [text for text in (task.problem.answer, *params.any_of) if text is not None and text.strip()]
        if not golds:
            return self.verdict(Outcome.UNVERIFIABLE, "no_gold")
        stated = _ends(task, params, whole=False)
        if stated is None:
            return self.verdict(Outcome.UNVERIFIABLE, "no_answer")
        said = text_words(stated.text)
        same = any(_text_matches(text_words(gold), said, params) for gold in golds)
        return self.verdict(Outcome.CORRECT if same else Outcome.INCORRECT, f"text_{params.match}", stated)


def text_words(text: str) -> list[str]:
    """Return the words of a text, case folded, without articles and punctuation; each Chinese character is a word."""
    text = unicodedata.normalize("NFKC", text).casefold()
    text = re.sub(r"([\u4e00-\u9fff])", r" \1 ", text)
    text = text.translate(
        {ord(sign): " " for sign in string.punctuation.replace("-", "").replace("+", "") + "。，、；：？！“”‘’（）"}
    )
    return [word for word in text.split() if word not in ("a", "an", "the")]


def _text_matches(gold: list[str], said: list[str], params: TextParams) -> bool:
    if params.match == "equal":
        return gold == said
    if params.match == "contains":
        return any(said[start : start + len(gold)] == gold for start in range(len(said) - len(gold) + 1))
    shared = sum((Counter(gold) & Counter(said)).values())
    return bool(shared) and 2 * shared / (len(gold) + len(said)) >= params.min_f1


class NumericVerifier(Verifier):
    """Compare one number with a tolerance."""

    name = "numeric"
    version = "2"
    Params = NumericParams

    def quick(self, task: VerifyTask, params: NumericParams) -> Verdict | None:
        if not (task.problem.answer or "").strip():
            return self.verdict(Outcome.UNVERIFIABLE, "no_gold")
        gold = number_in(gold_reading(task.problem.answer or ""))
        if gold is None:
            return self.verdict(Outcome.UNVERIFIABLE, "gold_is_no_number")
        stated = stated_answer(task, bare=params.bare)
        if stated is None:
            return self.verdict(Outcome.UNVERIFIABLE, "no_answer")
        said = number_in(read(stated.text))
        if said is None:
            return self.verdict(Outcome.INCORRECT, "no_number", stated)
        allowed = max(Fraction(params.abs_tol), abs(gold) * Fraction(params.rel_tol))
        close = abs(gold - said) <= allowed
        return self.verdict(Outcome.CORRECT if close else Outcome.INCORRECT, "numeric", stated, json.dumps(float(said)))


def number_in(reading: Reading) -> Fraction | None:
    """Return the real number an answer is, or None."""
    for value in reversed(reading.values):
        number = _number(value)
        if number is not None:
            return number
    return None


def _number(value: Value) -> Fraction | None:
    if isinstance(value, Relation):
        named = named_value(value)
        return None if named is None else _number(named)
    if not isinstance(value, Quantity) or value.node is None:
        return None
    try:
        number = constant(value.node)
    except UnboundedError:
        return None
    if number.imag:
        return None
    exact = Fraction(str(number.real))
    return exact / 100 if value.percent else exact
