"""Find the steps of a reasoning text that state the verified answer.

A statement counts where the value itself is written, as the result: the verifier accepts "so we need 3*4+6" for 18,
which states what is left to calculate.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from tracefactory.core.rows import Outcome, Problem, Thinking, Verdict
from tracefactory.pruning.base import PruneItem, Stating, Verify, correct
from tracefactory.pruning.evaluated import is_evaluated
from tracefactory.text.steps import StepKind, segment
from tracefactory.text.steps.classify import hedged, states_answer
from tracefactory.text.steps.protect import protected
from tracefactory.text.steps.sentences import sentence_starts

EVIDENCE = (
    "What states an answer: explicit (`the answer is`, a box), or result, which adds closing `so ...` sentences. The "
    "value must stand written, not as an expression to calculate. With result, an intermediate value that happens to "
    "equal the answer counts too."
)
"""The description of a parameter `evidence`."""

MAX_STATED = 300  # characters of a statement for the verifier, counted from its end, where the answer is
_CHINESE = re.compile(r"[\u4e00-\u9fff]")
_RESULT = re.compile(
    r"\A[\s*_>(-]*(?:(?:so|thus|therefore|hence|consequently|then|finally|this (?:gives|means)|that gives"
    r"|we (?:get|have)|altogether|in total)\b|因此|所以|故|于是|从而|得到?|共)"
    r".*(?:=|\b(?:is|are|equals|be|gives|get)\b|[是为得])[ \t]*(?P<value>[^=\n]{1,80}?)[\s.。!]*\Z",
    re.IGNORECASE | re.DOTALL,
)
# "x = 1 or x = 18" states two values, and neither as the answer.
_ALTERNATIVE = re.compile(r"(?:\bor\b|或者?)[\s$(]*\w+[\s$]*(?:=|\bis\b)[\s$]*\Z", re.IGNORECASE)
_DIGIT = re.compile(r"\d")
_POINTS_BACK = re.compile(
    r"\W*(?:this|that|which|it) (?:is|must be) (?:my|our|the) (?:final )?answer\W*", re.IGNORECASE
)
_OPERATOR = r"(?:[-+*/×·÷^−]|\\(?:times|cdot|div)(?![a-z])|\b(?:times|plus|minus|divided by|multiplied by)\b)"
_OPERAND_BEFORE = re.compile(rf"[\d)}}]\s*{_OPERATOR}[\s$({{]*\Z", re.IGNORECASE)
_OPERAND_AFTER = re.compile(rf"[\s$}})]*{_OPERATOR}[\s$({{]*[\d\\]", re.IGNORECASE)


@dataclass(frozen=True)
class Stated:
    """A step that states the verified answer, and the answer in the words of the step."""

    step: int
    answer: str


async def stated_answers(items: Sequence[PruneItem], verify: Verify, evidence: Stating) -> list[list[Stated]]:
    """Return, for every trace, the steps with an answer that the problem's verifier accepts, in order.

    A statement is explicit ("the answer is", a box, 答案是). With `result`, the result of a "so ..." sentence counts
    too, which finds answers earlier, but also intermediate values that equal the answer. Questions, guesses and
    expressions that have yet to be calculated do not count. Equal statements of a problem are verified once.

    Args:
        items: the traces in steps.
        verify: verifies answer texts.
        evidence: the statements that count.
    """
    wanted: dict[tuple[str, str], tuple[Problem, str]] = {}
    statements_of_items: list[list[tuple[int, str]]] = []
    for item in items:
        stated = [(step.index, text) for step in item.steps for text in statements(item.step(step.index), evidence)]
        statements_of_items.append(stated)
        wanted.update({(item.trace.problem_id, text): (item.trace.problem, text) for _, text in stated})
    answers = await verify(list(wanted.values())) if wanted else []
    verdicts = dict(zip(wanted, answers, strict=True))
    found: list[list[Stated]] = []
    for item, stated in zip(items, statements_of_items, strict=True):
        judged = [(step, text, verdicts[item.trace.problem_id, text]) for step, text in stated]
        found.append(
            [
                Stated(step, verdict.extracted or "")
                for step, text, verdict in judged
                if correct(verdict) and stands_written(item.trace.problem, text, verdict)
            ]
        )
    return found


def stands_written(problem: Problem, text: str, verdict: Verdict) -> bool:
    """Return whether the value that a verifier read in a statement is there as the result, with nothing left to do.

    Args:
        problem: the problem with its gold answers.
        text: the statement.
        verdict: the verdict on it; a value that is an operand in the statement is no result.
    """
    if not verdict.extracted:
        return False
    if verdict.span_start is not None and verdict.span_end is not None:
        before, after = text[: verdict.span_start], text[verdict.span_end :]
        if _OPERAND_BEFORE.search(before) or _OPERAND_AFTER.match(after):
            return False
    return is_evaluated(verdict.extracted, golds_of(problem))


def golds_of(problem: Problem) -> list[str]:
    """Return the gold answers of a problem."""
    return [gold for gold in (problem.answer, *problem.answers) if gold is not None]


def statements(step: str, evidence: Stating) -> list[str]:
    """Return the statements of an answer in a step, as texts for the verifier, in order."""
    whole = [(span.start, span.end) for span in protected(step)]
    bounds = [0, *sentence_starts(step, 0, len(step), whole), len(step)]
    found: list[str] = []
    for start, end in pairwise(bounds):
        sentence = step[start:end].strip()
        if states_answer(sentence):
            found += [] if _POINTS_BACK.fullmatch(sentence) else [sentence[-MAX_STATED:]]
        elif evidence == "result" and (value := _result(sentence[-MAX_STATED:])) is not None:
            found.append(f"\\boxed{{{value}}}")
    return found


def _result(sentence: str) -> str | None:
    """Return the result of a closing "so ..." sentence, None when it has none."""
    result = None if hedged(sentence, 0) else _RESULT.match(sentence)
    if result is None or _ALTERNATIVE.search(sentence[: result.start("value")]):
        return None
    value: str = result["value"].strip(" $*_")
    # "So 18 eggs can be sold" has no result, though it has the form of one.
    return value if _DIGIT.search(value) or not _DIGIT.search(sentence) else None


def last_statement(reasoning: str, evidence: Stating, *, retracted: bool = True) -> str | None:
    """Return the last statement of an answer in a reasoning text, as a text for the verifier; None without one.

    Args:
        reasoning: the text.
        evidence: the statements that count.
        retracted: whether a statement counts after which the text doubts or starts again.
    """
    for step in reversed(segment(reasoning)):
        if found := statements(step.of(reasoning), evidence):
            return found[-1]
        if not retracted and step.kind in (StepKind.REFLECTION, StepKind.RESTART):
            return None
    return None


def ending(item: PruneItem, stated: Stated) -> str:
    """Return the answer text of a trace that is cut after its answer: its own, or a sentence with the stated answer.

    The sentence is needed for a trace with unclosed thinking, which has no answer text, and for one with an incorrect
    answer, whose answer text does not match the stated answer.
    """
    trace = item.trace
    wrong = trace.verdict is not None and trace.verdict.outcome is Outcome.INCORRECT
    if trace.thinking is Thinking.CLOSED and trace.answer_text.strip() and not wrong:
        return trace.answer_text
    lead = "最终答案是" if len(_CHINESE.findall(trace.reasoning)) * 5 > len(trace.reasoning) else "The final answer is "
    return f"{lead}\\boxed{{{stated.answer}}}" + ("。" if lead.endswith("是") else ".")
