"""Speed of verification against math-verify's own, in one process, and what pathological answers cost the others."""

from __future__ import annotations

import asyncio
import json
import random
import re
import time
from pathlib import Path

import pytest

from tracefactory.answers.boxes import find_boxes
from tracefactory.core.rows import Outcome, Problem
from tracefactory.verification.base import VerifyTask
from tracefactory.verification.pool import VerifierPool
from tracefactory.verification.reference import math_verify_accepts

DATA = next((up / "shared/data" for up in Path(__file__).resolve().parents if (up / "shared/data").is_dir()), None)
PATHOLOGICAL = [
    "9^{9^{9^{9}}}",
    r"(10^8)!",
    r"\binom{10^9}{5\cdot10^8}",
    r"\sum_{k=1}^{10^9} k",
    "(x+y+z)^{60}",
    "(" * 500 + "1" + ")" * 500,
    r"\frac{1}{1+" * 1000 + "1" + "}" * 1000,
    "x+" * 50_000 + "x",
    "1" * 100_000,
    r"\{" + ",".join(map(str, range(5000))) + r"\}",
]


def rows(name: str) -> list[dict[str, str]]:
    assert DATA is not None
    return [json.loads(line) for line in (DATA / "problems" / name).read_text("utf-8").split("\n") if line]


def answers() -> list[str]:
    """Return gold answers of GSM8K and MATH where they are at hand, and answers of that kind where they are not."""
    if DATA is None:
        source = random.Random(5)
        made = [str(source.randrange(5000)) for _ in range(150)]
        return [
            *made,
            *(rf"\frac{{{a}}}{{{a + 2}}}" for a in range(1, 80, 2)),
            *(rf"{a}\sqrt{{3}}" for a in range(2, 40)),
        ]
    gsm = [row["answer"].split("####")[1].strip() for row in rows("gsm8k_test.jsonl")]
    solutions = [row["solution"] for row in rows("math_test.jsonl")]
    math = [boxes[-1].text for boxes in map(find_boxes, solutions) if boxes]
    return [*gsm[:150], *math[:150]]


def labelled_pairs() -> list[tuple[str, str, bool]]:
    """Return each answer with itself in another spelling (right) and with the next different one (wrong)."""
    golds = answers()
    pairs = []
    for gold, other in zip(golds, [*golds[1:], golds[0]], strict=True):
        pairs.append((gold, respelled(gold), True))
        if re.fullmatch(r"-?\d+", gold) and re.fullmatch(r"-?\d+", other) and int(gold) != int(other):
            pairs.append((gold, other, False))
    return pairs


def respelled(answer: str) -> str:
    """Write an answer another way without changing what it says."""
    spelled = answer.replace(r"\frac", r"\dfrac")
    return f"{int(spelled):,}" if re.fullmatch(r"\d{4,}", spelled) else spelled


@pytest.mark.bench
def test_throughput_against_math_verify(capsys: pytest.CaptureFixture[str]) -> None:
    pairs = labelled_pairs()
    tasks = [
        VerifyTask(
            problem=Problem.make(question="", answer=gold, verifier="math"),
            answer_text=rf"So the result is \boxed{{{answer}}}.",
        )
        for gold, answer, _ in pairs
    ]
    with VerifierPool(workers=1) as pool:
        begin = time.process_time()
        verdicts = asyncio.run(pool.verify(tasks))
        own_seconds = time.process_time() - begin + sum(v.seconds for v in verdicts if v.method == "symbolic")
    begin = time.process_time()
    theirs = [math_verify_accepts(gold, rf"So the result is \boxed{{{answer}}}.") for gold, answer, _ in pairs]
    their_seconds = time.process_time() - begin
    own_right = sum((v.outcome is Outcome.CORRECT) == label for v, (_, _, label) in zip(verdicts, pairs, strict=True))
    their_right = sum(found == label for found, (_, _, label) in zip(theirs, pairs, strict=True))
    ratio = their_seconds / own_seconds
    with capsys.disabled():
        print(f"\n{len(pairs)} pairs: {ratio:.0f} times math-verify's throughput per core;", end=" ")
        print(f"agreement {own_right / len(pairs):.1%} against {their_right / len(pairs):.1%}")
    assert ratio >= 10
    assert own_right >= their_right


@pytest.mark.bench
def test_pathological_answers_are_bounded_and_slow_nobody(capsys: pytest.CaptureFixture[str]) -> None:
    deadline = 3.0
    easy = [
        VerifyTask(problem=Problem.make(question="", answer=str(n), verifier="math"), answer_text=rf"\boxed{{{n}}}")
        for n in range(200)
    ]
    hard = [
        VerifyTask(problem=Problem.make(question="", answer="5", verifier="math"), answer_text=rf"\boxed{{{answer}}}")
        for answer in PATHOLOGICAL
    ]
    with VerifierPool(workers=2, deadline=deadline) as pool:
        verdicts = asyncio.run(pool.verify([*hard, *easy]))
    with capsys.disabled():
        for task, verdict in zip(hard, verdicts, strict=False):
            print(f"{task.answer_text[:40]!r}: {verdict.outcome.value} by {verdict.method}, {verdict.seconds:.2f} s")
    assert all(verdict.outcome is not Outcome.CORRECT for verdict in verdicts[: len(hard)])
    assert all(verdict.outcome is Outcome.CORRECT for verdict in verdicts[len(hard) :])
    assert max(verdict.seconds for verdict in verdicts[len(hard) :]) < deadline / 10
