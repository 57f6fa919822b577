"""Complete rows from the few fields that a test needs."""

from __future__ import annotations

from typing import Any

from tracefactory.core.fingerprint import digest
from tracefactory.core.rows import ID_DIGITS, Outcome, Problem, Thinking, Trace, Verdict


def make_problem(question: str = "What is 6 times 7?", answer: str | None = "42", **rest: Any) -> Problem:
    """Return a problem, whose id is a hash of question and answer.

    Args:
        question: the question.
        answer: the gold answer, or None.
        rest: other fields of `Problem`; by default the verifier is `math`.
    """
    return Problem.make(question=question, answer=answer, **{"verifier": "math", "source": "make_problem", **rest})


def make_trace(
    *,
    problem: Problem | None = None,
    question: str = "What is 6 times 7?",
    gold: str | None = "42",
    reasoning: str = "",
    answer_text: str = "The answer is 42.",
    outcome: Outcome | str | None = Outcome.CORRECT,
    **rest: Any,
) -> Trace:
    """Return a trace, whose id is a hash of its problem, reasoning and answer.

    Args:
        problem: its problem; by default a problem with `question` and `gold`.
        question: the question of the default problem.
        gold: the gold answer of the default problem.
        reasoning: the text between the think tags.
        answer_text: the text after the think tags.
        outcome: the outcome of its verdict; None for a trace without a verdict.
        rest: other fields of `Trace`. By default `thinking` is closed if there is reasoning and none otherwise, and
            `completion_tokens` is the number of words.
    """
    of = problem or make_problem(question, gold, source="make_trace")
    given = {
        "problem": of,
        "reasoning": reasoning,
        "answer_text": answer_text,
        "thinking": Thinking.CLOSED if reasoning else Thinking.NONE,
        "completion_tokens": len(reasoning.split()) + len(answer_text.split()),
        **rest,
    }
    if "verdict" not in given and outcome is not None:
        given["verdict"] = Verdict(outcome=Outcome(outcome), method="given", verifier="make_trace", version="1")
    if "id" not in given:
        given["id"] = digest([of.id, reasoning, answer_text])[:ID_DIGITS]
    return Trace(**given)
