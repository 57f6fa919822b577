"""Complete rows from the few fields that a test needs."""

from __future__ import annotations

from typing import Any

from tracefactory.core.fingerprint import digest
from tracefactory.core.rows import ID_DIGITS, Outcome, Problem, Thinking, Trace, Verdict


def make_problem(question: str = "What is 6 times 7?", answer: str | None = "42", **rest: Any) -> Problem:
    """Return a problem; its id comes from question and answer.

    Args:
        question: what is asked.
        answer: the gold answer, None where there is none.
        rest: any other field of `Problem`; its verifier is `math` unless another one is given.
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
    """Return a trace; its id comes from its problem, its reasoning and its answer.

    Args:
        problem: what it is about; by default one of `question` and `gold`.
        question: the question of that problem.
        gold: the gold answer of that problem.
        reasoning: what stands between the think tags.
        answer_text: what stands after them.
        outcome: that of its verdict; None leaves the trace unverified.
        rest: any other field of `Trace`. Unless they are given, `thinking` is closed when there is reasoning and none
            otherwise, and `completion_tokens` is the number of words.
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
