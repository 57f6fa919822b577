"""Where a reasoning states the verified answer."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from tracefactory.core.rows import Outcome, Problem, Thinking
from tracefactory.pruning.base import PruneItem, Verify, correct
from tracefactory.text.steps.classify import hedged, states_answer
from tracefactory.text.steps.protect import protected
from tracefactory.text.steps.sentences import sentence_starts

Evidence = Literal["explicit", "result"]

MAX_STATED = 300  # characters of a statement handed to the verifier: it opens with its cue and ends with its answer
_CHINESE = re.compile(r"[\u4e00-\u9fff]")
_RESULT = re.compile(
    r"\A[\s*_>(-]*(?:(?:so|thus|therefore|hence|consequently|then|finally|this (?:gives|means)|that gives"
    r"|we (?:get|have)|altogether|in total)\b|因此|所以|故|于是|从而|得到?|共)"
    r".*?(?:=|\b(?:is|are|equals|be|gives|get)\b|[是为得])[ \t]*(?P<value>[^=\n]{1,80}?)[\s.。!]*\Z",
    re.IGNORECASE | re.DOTALL,
)


@dataclass(frozen=True)
class Stated:
    """A step that states the verified answer, and the answer as it stands there."""

    step: int
    answer: str


async def stated_answers(items: Sequence[PruneItem], verify: Verify, evidence: Evidence) -> list[list[Stated]]:
    """Find, for every trace, the steps that state the answer its problem's verifier accepts, in order.

    A statement says that it is the answer ("the answer is", a box, 答案是); with `result`, what a "so ..." sentence
    arrives at counts too, which finds answers earlier and takes an intermediate value for one where they are equal.
    Questions and guesses state nothing. Statements of a problem that read the same are verified once.
    """
    wanted: dict[tuple[str, str], tuple[Problem, str]] = {}
    places: list[list[tuple[int, str]]] = []
    for item in items:
        stated = [(step.index, text) for step in item.steps for text in statements(item.step(step.index), evidence)]
        places.append(stated)
        wanted.update({(item.trace.problem_id, text): (item.trace.problem, text) for _, text in stated})
    answers = await verify(list(wanted.values())) if wanted else []
    verdicts = dict(zip(wanted, answers, strict=True))
    found: list[list[Stated]] = []
    for item, stated in zip(items, places, strict=True):
        told = [(step, verdicts[item.trace.problem_id, text]) for step, text in stated]
        found.append([Stated(step, verdict.extracted or "") for step, verdict in told if correct(verdict)])
    return found


def statements(step: str, evidence: Evidence) -> list[str]:
    """Return what a step states to be the answer, as texts for the verifier, in order."""
    whole = [(span.start, span.end) for span in protected(step)]
    bounds = [0, *sentence_starts(step, 0, len(step), whole), len(step)]
    found: list[str] = []
    for start, end in pairwise(bounds):
        sentence = step[start:end].strip()
        if states_answer(sentence):
            found.append(sentence[-MAX_STATED:])
        elif evidence == "result" and not hedged(sentence, 0):
            result = _RESULT.match(sentence[-MAX_STATED:])
            if result:
                found.append(f"\\boxed{{{result['value'].strip(' $*_')}}}")
    return found


def ending(item: PruneItem, stated: Stated) -> str:
    """Return the answer text of a trace cut after its answer: its own, or the stated answer in a sentence.

    A trace that never closed its thinking has no answer text of its own, and one that went on to a wrong answer has
    one that no longer fits.
    """
    trace = item.trace
    wrong = trace.verdict is not None and trace.verdict.outcome is Outcome.INCORRECT
    if trace.thinking is Thinking.CLOSED and trace.answer_text.strip() and not wrong:
        return trace.answer_text
    lead = "最终答案是" if len(_CHINESE.findall(trace.reasoning)) * 5 > len(trace.reasoning) else "The final answer is "
    return f"{lead}\\boxed{{{stated.answer}}}" + ("。" if lead.endswith("是") else ".")
