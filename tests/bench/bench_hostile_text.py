"""What hostile answers cost: in the process of the run, and, where they are long, in a worker with a deadline."""

from __future__ import annotations

import time

import pytest

from tracefactory.core.rows import Outcome, Problem
from tracefactory.verification.base import VerifyTask
from tracefactory.verification.pool import QUICK_CHARS, VerifierPool, quick_verdict

LINE = 1_000_000
DEADLINE = 10.0
KINDS: dict[str, tuple[str, str, str]] = {
    "spaces": ("The answer is", " ", "x"),
    "line breaks": ("The answer is", "\n", "x"),
    "written line breaks": ("The answer is", r"\n", "x"),
    "zero-width spaces": ("The answer is", "\u200b", "x"),
    "combining accents": ("The answer is e", "\u0301", ""),
    "bidirectional controls": ("The answer is ", "\u202e\u202c", "6"),
    "one line of words": ("", "the answer is a word ", ""),
    "one line of digits": ("The answer is ", "7", ""),
    "nested braces": (r"\boxed{", "{", "5" + "}" * 100_000),
    "nested brackets": ("The answer is ", "(", "6" + ")" * 100_000),
    "open formulas": ("The answer is ", r"\( ", ""),
    "boxes": ("", r"\boxed{6} ", ""),
    "open boxes": ("", r"\boxed{", ""),
    "announcements": ("", "The answer is $a$ ", ""),
    "retractions": ("The answer is 6. ", "No, that is wrong. ", ""),
    "JSON objects": ("", '{"answer": ', ""),
}
"""What the text begins with, what it repeats, and what it ends with."""
REPEATED = {"nested braces": 100_000, "nested brackets": 100_000, "boxes": 1_000_000}
"""How often a kind is repeated, where that says more than its characters."""


def hostile(kind: str, chars: int | None) -> str:
    """Return a text of a kind; with None of its full size, otherwise cut to a number of characters."""
    begin, unit, end = KINDS[kind]
    text = begin + unit * REPEATED.get(kind, LINE // len(unit)) + end
    return text if chars is None else text[: chars - len(end)] + end if len(end) < 10 else text[:chars]


@pytest.mark.bench
def test_hostile_texts_are_bounded(capsys: pytest.CaptureFixture[str]) -> None:
    problem = Problem.make(question="What is it?", answer="5", verifier="math")
    slowest = 0.0
    lines = [f"{'kind':24}{'characters':>12}  {'in process':>10}  {'in a worker':>11}  verdict"]
    with VerifierPool(workers=1, deadline=DEADLINE) as pool:
        pool.verify_now(VerifyTask(problem=problem, answer_text="5" * (QUICK_CHARS + 1)))  # starts the worker
        for kind in KINDS:
            for size in (QUICK_CHARS, None):
                task = VerifyTask(problem=problem, answer_text=hostile(kind, size))
                begin = time.process_time()
                quick = quick_verdict(task)
                own = time.process_time() - begin
                slowest = max(slowest, own)
                found = quick or pool.verify_now(task)
                worker = "" if quick is not None else f"{found.seconds:.2f} s"
                row = f"{kind:24}{len(task.answer_text):12,}  {own:8.3f} s  {worker:>11}"
                lines.append(f"{row}  {found.outcome.value} {found.method}")
                assert found.outcome is not Outcome.CORRECT
    with capsys.disabled():
        print("\n" + "\n".join(lines))
    assert slowest < DEADLINE / 5, "the process of the run does not wait for one text as a worker may"
