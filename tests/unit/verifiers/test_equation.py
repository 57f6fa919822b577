"""`equation`: what stated equations say of the unknown, exactly, and what cannot be decided is never called wrong."""

from __future__ import annotations

import pytest

from tracefactory.core.rows import Outcome, Problem
from tracefactory.verification.base import VerifyTask
from tracefactory.verification.pool import VerifierPool

C, I, U = Outcome.CORRECT, Outcome.INCORRECT, Outcome.UNVERIFIABLE  # noqa: E741


@pytest.fixture(scope="module")
def pool():  # type: ignore[no-untyped-def]
    with VerifierPool(workers=1) as opened:
        yield opened


def block(*lines: str) -> str:
    return "Let us set it up.\n\n```\n" + "\n".join(lines) + "\n```\n"


@pytest.mark.parametrize(
    ("answer", "gold", "outcome", "method"),
    [
        (block("hens + cows = 10", "2 hens + 4 cows = 28", "answer = cows"), "4", C, "solved"),
        (block("hens + cows = 10", "2 hens + 4 cows = 28", "answer = hens"), "4", I, "solved"),
        (block("x + y = 10", "x - y = 2", "ans = x * y"), "24", C, "solved"),
        (r"So \begin{cases} 3a + b = 10 \\ a = 2 \end{cases} and answer = b", "4", C, "solved"),
        ("The sum is x = 3 + 4 * 5.", "23", C, "solved"),
        ("x = 1/3", "0.5", I, "solved"),
        (block("3x = 1"), "1/3", C, "solved"),
        (block("x^2 = 2", "x = 1 + y", "answer = y + 1 - x"), "0", C, "solved"),
        (block("x^2 = 4"), "2", U, "several_solutions"),
        (block("x^2 = 4"), "3", I, "solved"),
        (block("x + y = 10", "answer = x"), "4", U, "not_determined"),
        (block("x = 1", "x = 2"), "1", I, "solved"),
        (block("x + y = 3", "x - y = 1"), "2", U, "which_unknown"),
        (block("x + = 10"), "4", U, "not_an_equation"),
        (block("answer = sin(x)", "x = 1"), "4", U, "not_an_equation"),
        ("There is no equation here.", "4", U, "no_answer"),
        (block("x = 4"), "blue", U, "gold_is_no_number"),
        (block(*(f"v{n} = {n}" for n in range(70))), "4", U, "not_an_equation"),
        ("\n".join(f"v = {n}" for n in range(500)), "4", U, "not_an_equation"),
        (
            block("price = 3", "count = 4", "total = price * count", "paid = total + total / 4", "answer = paid * 2"),
            "30",
            C,
            "solved",
        ),
        (
            block("price = 3", "count = 4", "total = price * count", "paid = total + total / 4", "answer = paid * 2"),
            "31",
            I,
            "solved",
        ),
        (block("answer = 4", "answer = 5"), "4", I, "solved"),
        (block("x = 9**9**9"), "4", U, "not_an_equation"),
        (block("y = 9^9^9", "x = 4", "answer = x"), "4", U, "not_an_equation"),
        (block("the = of = and", "= = ="), "4", U, "not_an_equation"),
        (block("x = x + 1"), "4", I, "solved"),  # a contradiction
        (block("x = x"), "4", U, "not_determined"),
        (block("x = 1/0"), "4", U, "not_an_equation"),
        (block("x^3 - 3x + 1 = 0"), "1.5320888862379561", U, "several_solutions"),  # real roots by complex radicals
        (block("x^3 - 3x + 1 = 0"), "4", I, "solved"),
        (block("x^5 - x - 1 = 0"), "1.1673039782614187", C, "solved"),  # no radicals give it
        (block("2^x = 8"), "3", C, "solved"),
        (block("2^x = x + 3"), "2.4449", U, "not_all_solutions"),  # sympy finds one of the two
        (block("sqrt(x) = -2"), "4", U, "not_all_solutions"),
        (block("w*(w + 2) = 24", "w = 4", "answer = w + 2"), "6", C, "solved"),
    ],
)
def test_equations_are_solved_and_compared(
    pool: VerifierPool, answer: str, gold: str, outcome: Outcome, method: str
) -> None:
    problem = Problem.make(question="?", answer=gold, verifier="equation")
    verdict = pool.verify_now(VerifyTask(problem=problem, answer_text=answer))
    assert (verdict.outcome, verdict.method) == (outcome, method), verdict.detail


def test_a_system_that_takes_too_long_is_a_verifier_error(pool: VerifierPool) -> None:
    hard = block(*(f"x^{n + 7} + y^{n + 3} = z^{n + 5} + {n}" for n in range(3)), "answer = x")
    with VerifierPool(workers=1, deadline=2.0) as impatient:
        problem = Problem.make(question="?", answer="4", verifier="equation")
        for text in (hard, block("x^1000 = 1", "answer = x")):
            assert impatient.verify_now(VerifyTask(problem=problem, answer_text=text)).outcome is Outcome.VERIFIER_ERROR


@pytest.mark.parametrize(
    "text", ["__import__('os').system('x') = 1", "x = " + "(" * 500, "=" * 2000, "x = 9^9^9^9", "x = " + "9" * 5000]
)
def test_hostile_equations_are_never_decided(pool: VerifierPool, text: str) -> None:
    problem = Problem.make(question="?", answer="4", verifier="equation")
    outcome = pool.verify_now(VerifyTask(problem=problem, answer_text=block(text))).outcome
    assert outcome in (Outcome.UNVERIFIABLE, Outcome.VERIFIER_ERROR)
