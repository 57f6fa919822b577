"""The time of regular expressions and functions over texts of models grows linearly with the text."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from functools import lru_cache
from itertools import product

import pytest

from tests.hostile import FAILS, PACKAGES, UNITS, Found, hostile_units, patterns
from tracefactory.answers.extract import extract, extract_bare
from tracefactory.answers.normalize import strip_markup
from tracefactory.answers.reading import read
from tracefactory.answers.runs import shorten
from tracefactory.core.rows import Outcome, Problem
from tracefactory.maths.arithmetic import false_equations
from tracefactory.pruning.answers import statements
from tracefactory.pruning.base import PruneItem, keep
from tracefactory.pruning.dangling import dangling
from tracefactory.pruning.evaluated import is_evaluated, is_literal, unevaluated_end
from tracefactory.pruning.undefined import undefined
from tracefactory.sandbox.programs import find_program
from tracefactory.testing.rows import make_trace
from tracefactory.text.reasoning import split_reasoning
from tracefactory.text.steps import StepKind, segment
from tracefactory.text.steps.label import parse_labels
from tracefactory.verification.base import VerifyTask
from tracefactory.verification.pool import QUICK_CHARS, quick_verdict

SIZES = (24, 250, 4000)
"""Characters; the small ones stop a pattern of exponential or cubic time before the large ones."""
SUSPECT = 0.008
"""CPU seconds for a text that a linear pattern does not need at any of these sizes."""
MOST_BOUNDED = 0.05
"""CPU seconds for a text of the most characters that a bounded pattern is given."""
STEEPEST = 8.0
"""Four times the text may take so many times as long: linear is 4, quadratic 16."""
SHORTENED = ("tracefactory.answers.", "tracefactory.verifiers.choice:")
"""Modules whose texts have no long runs of white space: `extract` shortens them, `normalize` reduces them."""
BOUNDED = {
    "tracefactory.answers.quantities:_TAIL": (80, "_LONGEST_TAIL, checked before"),
    "tracefactory.answers.sentences:_TAIL": (120, "searched in the last _LONGEST_TAIL characters"),
    "tracefactory.answers.quantities:parse_unit": (80, "_LONGEST_TAIL, checked before"),
    "tracefactory.text.steps.rules:_IDLE": (200, "is_filler refuses what is longer than MAX_FILLER"),
    "tracefactory.pruning.answers:_ALTERNATIVE": (300, "a sentence of at most MAX_STATED characters"),
    "tracefactory.pruning.answers:_OPERAND_BEFORE": (300, "a statement of at most MAX_STATED characters"),
    "tracefactory.pruning.answers:_RESULT": (300, "a sentence of at most MAX_STATED characters"),
    "tracefactory.maths.arithmetic:_WORD_BEFORE": (30, "_REACH characters before an equation"),
    "tracefactory.pruning.undefined:_RESULT": (80, "_before gives at most _REACH characters"),
    "tracefactory.pruning.undefined:_BEFORE_OPERAND": (80, "_before gives at most _REACH characters"),
    "tracefactory.pruning.undefined:_UNIT": (80, "_before gives at most _REACH characters"),
    "tracefactory.pruning.evaluated:": (600, "values and ends of at most MAX_VALUE characters"),
    "tracefactory.text.template_budget:_PERCENT": (6000, "a format in a prompt template, which is no text of a model"),
}
"""By label or module: the most characters that the pattern is given, and what sees to that."""


def seconds(pattern: re.Pattern[str], method: str, text: str, times: int = 1) -> float:
    best = float("inf")
    for _ in range(times):
        begin = time.thread_time()
        if method == "scan":
            for _match in pattern.finditer(text):
                pass
        else:
            getattr(pattern, method)(text)
        best = min(best, time.thread_time() - begin)
    return best


def hostile_text(label: str, head: str, unit: str, tail: str, size: int) -> str:
    text = head + unit * (size // len(unit)) + tail
    return shortened(text) if label.startswith(SHORTENED) else text


@lru_cache(maxsize=4096)
def shortened(text: str) -> str:
    """Return what `shorten` makes of a text; most patterns are tried on the same texts."""
    return shorten(text).text


def slow(found: Found) -> str | None:
    """Return what takes more than linear time, None when nothing does."""
    bound = next((most for label, (most, _) in BOUNDED.items() if found.label.startswith(label)), None)
    sizes = SIZES if bound is None else tuple(size for size in (24, 250, bound) if size <= bound)
    tails = FAILS if found.pattern.pattern.endswith(("$", r"\Z", "$)", "$)))")) else FAILS[:1]
    for (head, unit), tail, method in product(hostile_units(found.pattern), tails, sorted(found.methods)):
        for size in sizes:
            text = hostile_text(found.label, head, unit, tail, size)
            if seconds(found.pattern, method, text) <= (SUSPECT if bound is None else MOST_BOUNDED):
                continue
            taken = seconds(found.pattern, method, text, 2)
            quarter = seconds(found.pattern, method, hostile_text(found.label, head, unit, tail, size // 4), 2)
            if taken > SUSPECT and taken > STEEPEST * quarter:
                return f"{found.label} {method}: {taken:.3f} s for {size} of {head!r} {unit!r} {tail!r}"
            break
    return None


@pytest.mark.parametrize("part", range(4))
@pytest.mark.parametrize("package", [*PACKAGES, "sandbox"])
def test_every_pattern_takes_linear_time(package: str, part: int) -> None:
    own = [found for found in patterns() if found.package == package][part::4]
    assert [fault for found in own if (fault := slow(found)) is not None] == []


def test_the_walk_finds_the_patterns_of_names_tables_and_calls() -> None:
    labels = {found.label for found in patterns()}
    assert "tracefactory.answers.announce:_STRONG" in labels
    assert "tracefactory.answers.shapes:PATTERNS" in labels
    assert "tracefactory.text.steps.classify:RULES" in labels
    assert any(re.fullmatch(r"tracefactory\.answers\.extract:\d+", label) for label in labels)


@pytest.mark.parametrize("pattern", [r"\s*x", r"<(.*?)>", r"\d+\s*\d*$", r"(?:a+)+$", r"if[^,]*$"])
def test_patterns_that_are_not_linear_are_found(pattern: str) -> None:
    assert slow(Found("here:PATTERN", re.compile(pattern), frozenset({"scan"}))) is not None


PHRASES = (
    "The answer is 5. ", "The answer is $a$ ", "Wait, no. ", "that is wrong ", "答案是", "x = 5\n", "| a | b |\n",
    "#### 5\n",
    "equation (1) ", "5 * 7 = 35 ", "Let x be ", "因为", "as computed above 35 ", "**a** ", "- a\n  ", "so ", "*:",
    r"\boxed{5} ", '{"answer": ', r"\begin{align} ", "if ", "A) ", "5% ", "1e5 ", "or 1 ", "Step 1: ",
)  # fmt: skip


def verified(text: str) -> None:
    problem = Problem.make(question="What is it?", answer="5", verifier="math")
    for answer in (text, "The answer is " + text, rf"\boxed{{{text}}}"):
        quick_verdict(VerifyTask(problem=problem, answer_text=answer[:QUICK_CHARS]))


def pruned(text: str) -> None:
    trace = make_trace(reasoning=f"Let x be 9 * 12 = 108 in step 99.\n\n{text}", answer_text="The answer is 5.")
    item = PruneItem.of(trace)
    result = keep(item, tuple(step.index for step in item.steps[1:]), "The answer is 5.")
    dangling(item, result)
    undefined(item, result)


def of_statements(text: str) -> None:
    statements(text, "result")
    unevaluated_end(text, ["5"])
    is_evaluated(text, ["5"])
    is_literal(text)
    false_equations(text)


def of_values(text: str) -> None:
    strip_markup(text)
    read.__wrapped__(text)


def of_answers(text: str) -> None:
    extract(text)
    extract_bare(text)


def of_structure(text: str) -> None:
    split_reasoning(text, None, opened_in_prompt=False)
    segment(text)
    parse_labels(text)
    find_program(text, names=("f",))


@pytest.mark.parametrize("size", [QUICK_CHARS // 2, pytest.param(QUICK_CHARS, marks=pytest.mark.slow)])
@pytest.mark.parametrize("work", [verified, of_answers, of_values, of_structure, of_statements, pruned])
def test_every_function_over_texts_of_models_takes_linear_time(work: Callable[[str], object], size: int) -> None:
    floor = 0.4 * (size / QUICK_CHARS) ** 2  # seconds; what takes quadratic time needs more of the largest text

    def taken(unit: str, size: int) -> float:
        begin = time.thread_time()
        work(unit * (size // len(unit)))
        return time.thread_time() - begin

    work("warm")
    faults = []
    for unit in (*UNITS, *PHRASES):
        whole = taken(unit, size)
        if whole > floor and (ratio := min(whole, taken(unit, size)) / taken(unit, size // 4)) > STEEPEST:
            faults.append((unit, whole, ratio))
    assert faults == []


def test_a_huge_power_is_not_calculated() -> None:
    assert unevaluated_end("So we need 1*10^(99999999)", ["5"]) is not None


def test_a_deeply_nested_answer_is_read() -> None:
    found = extract('{"answer": ' + "[" * 900 + "]" * 900 + "}")
    assert found is None or not found.value.strip()


def test_a_number_of_thousands_of_digits_is_no_step() -> None:
    assert parse_labels("9" * 5000 + ": derivation\n2: filler") == {2: StepKind.FILLER}


@pytest.mark.parametrize(("gold", "answer"), [("9", "9**9**9**9"), ("50", "5000%%%%%%"), ("3", "**2**3")])
def test_expressions_that_only_look_like_the_gold_answer_are_not_equal(gold: str, answer: str) -> None:
    problem = Problem.make(question="What is it?", answer=gold, verifier="math")
    verdict = quick_verdict(VerifyTask(problem=problem, answer_text=f"The answer is {answer}."))
    assert verdict is None or verdict.outcome is not Outcome.CORRECT
