"""A scripted student, writer and verifier at the edge, and traces to prune."""

import re
from collections.abc import Callable, Sequence
from types import SimpleNamespace

import pytest

from tracefactory.core.rows import Outcome, Problem, Thinking, Trace, Verdict
from tracefactory.pruning import ConcludeItem, Conclusion, RewriteItem, Tools

_ANSWER = re.compile(r"\\boxed\{([^}]*)\}|answer is[ :]*\**\$?(-?[\w.]*\w)|答案(?:应该)?是[：:]?\s*(-?[\w.]*\w)", re.I)


def judge(problem: Problem, text: str) -> Verdict:
    """Compare the last stated answer with the gold by string: enough for what these tests state."""
    stated = [next(group for group in found if group) for found in _ANSWER.findall(text) if any(found)]
    outcome = Outcome.UNVERIFIABLE
    if stated and problem.answer is not None:
        outcome = Outcome.CORRECT if stated[-1] == problem.answer else Outcome.INCORRECT
    return Verdict(
        outcome=outcome, extracted=stated[-1] if stated else None, method="test", verifier="test", version="1"
    )


class Verifier:
    """Counts its calls, and fails on texts that hold `boom`."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    async def __call__(self, pairs: list[tuple[Problem, str]]) -> list[Verdict]:
        self.batches.append(len(pairs))
        verdicts = [judge(problem, text) for problem, text in pairs]
        return [
            verdict.model_copy(update={"outcome": Outcome.VERIFIER_ERROR}) if "boom" in text else verdict
            for verdict, (_, text) in zip(verdicts, pairs, strict=True)
        ]


Reply = Callable[[ConcludeItem], str | Conclusion]


class Student:
    """Answers by a function of the prefix it is shown, and remembers every batch it was asked."""

    def __init__(self, reply: Reply, written: Conclusion | None = None) -> None:
        self.reply, self.written = reply, written or Conclusion(text="The answer is 42.", reasoning="So 42.")
        self.batches: list[list[ConcludeItem]] = []
        self.extended: list[list[ConcludeItem]] = []

    async def conclude(self, items: Sequence[ConcludeItem]) -> list[Conclusion]:
        self.batches.append(list(items))
        replies = [self.reply(item) for item in items]
        return [reply if isinstance(reply, Conclusion) else Conclusion(text=reply) for reply in replies]

    judge = conclude

    async def extend(self, items: Sequence[ConcludeItem]) -> list[Conclusion]:
        self.extended.append(list(items))
        return [self.written for _ in items]

    def calls(self, trace: str) -> int:
        return sum(len({item.reasoning for item in batch if item.id == trace}) for batch in self.batches)


class Writer:
    def __init__(self, written: Conclusion) -> None:
        self.written = written
        self.batches: list[list[RewriteItem]] = []

    async def rewrite(self, items: Sequence[RewriteItem]) -> list[Conclusion]:
        self.batches.append(list(items))
        return [self.written for _ in items]


@pytest.fixture
def verifier() -> Verifier:
    return Verifier()


@pytest.fixture
def tools(verifier: Verifier) -> Tools:
    return Tools(verify=verifier)


def problem(answer: str | None = "42", question: str = "What is six times seven?") -> Problem:
    return Problem.make(question=question, answer=answer, verifier="test")


def trace(
    reasoning: str,
    answer_text: str = "The answer is 42.",
    *,
    name: str = "t",
    gold: str | None = "42",
    thinking: Thinking = Thinking.CLOSED,
    question: str = "What is six times seven?",
) -> Trace:
    """Build a trace with the verdict its answer text deserves."""
    asked = problem(gold, question)
    return Trace(
        id=name,
        problem=asked,
        reasoning=reasoning,
        answer_text=answer_text,
        thinking=thinking,
        verdict=judge(asked, answer_text),
    )


def numbered(count: int, name: str = "t") -> Trace:
    """Build a trace of exactly `count` steps, each of which can be told from the others."""
    return trace("\n\n".join(f"Then q{number} follows from what we know." for number in range(count)), name=name)


@pytest.fixture(scope="session")
def make_trace() -> Callable[..., Trace]:
    return trace


@pytest.fixture
def lab(verifier: Verifier) -> SimpleNamespace:
    """Hand the tests the names of this file: they are loaded without a package."""
    return SimpleNamespace(
        Student=Student, Writer=Writer, problem=problem, trace=trace, numbered=numbered, judge=judge, verify=verifier
    )
