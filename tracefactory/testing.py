"""Traces to test a filter with.

from tracefactory.filters import load_filters
from tracefactory.filters.testing import make_trace

def test_short_reasoning_is_dropped():
    hedging = load_filters(Path("filters"))["hedging"]
    decision = hedging.decide(make_trace(reasoning="Wait. Hmm."), hedging.params_model())
    assert decision.reason == "hedging"
"""

from __future__ import annotations

from typing import Any

from tracefactory.core.fingerprint import digest
from tracefactory.core.rows import Outcome, Problem, Thinking, Trace, Verdict


def make_trace(
    *,
    question: str = "What is 6 times 7?",
    gold: str | None = "42",
    reasoning: str = "",
    answer_text: str = "The answer is 42.",
    outcome: Outcome | str | None = Outcome.CORRECT,
    **rest: Any,
) -> Trace:
    """Return a whole trace made from the few things a filter looks at; every other field of Trace may be given too.

    `thinking` is closed when there is reasoning and none otherwise, and `completion_tokens` is the number of words,
    unless they are given. `outcome` makes the verdict; None leaves the trace unverified.
    """
    problem = Problem.make(question=question, answer=gold, verifier="math", source="make_trace")
    given = {
        "problem": problem,
        "reasoning": reasoning,
        "answer_text": answer_text,
        "thinking": Thinking.CLOSED if reasoning else Thinking.NONE,
        "completion_tokens": len(reasoning.split()) + len(answer_text.split()),
        **rest,
    }
    if "verdict" not in given and outcome is not None:
        given["verdict"] = Verdict(outcome=Outcome(outcome), method="given", verifier="make_trace", version="1")
    if "id" not in given:
        given["id"] = digest([problem.id, reasoning, answer_text])[:16]
    return Trace(**given)
