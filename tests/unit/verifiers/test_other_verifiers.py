"""Choice, strings, text, numbers, reasoning_gym; consensus, pass rate and judge; the command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from tracefactory.cli.verify import verify
from tracefactory.core.errors import UserError
from tracefactory.core.rows import Outcome, Verdict
from tracefactory.reading import gym
from tracefactory.verification.consensus import consensus
from tracefactory.verification.judge import judge, read_vote
from tracefactory.verification.pass_rates import pass_rate, wilson
from tracefactory.verification.single import verify_one

QUESTION = "How many? (A) 12 (B) 15 (C) 18 (D) none of these"


@pytest.mark.parametrize(
    ("gold", "text", "outcome"),
    [
        ("B", "The answer is (B).", "correct"),
        ("B", "**Answer:** B) 15", "correct"),
        ("B", r"\boxed{\textbf{(B)}\ 15}", "correct"),
        ("B", r"So it is \boxed{15}.", "correct"),
        ("B", r"So it is \boxed{18}.", "incorrect"),
        ("B", "The correct option is C.", "incorrect"),
        ("B", "答案是 B。", "correct"),
        ("B", "故选：C", "incorrect"),
        ("A, C", r"\boxed{A, C}", "correct"),
        ("A, C", r"\boxed{A}", "incorrect"),
        ("B", r"\boxed{99}", "unverifiable"),
        ("B", "Option B", "correct"),
        ("B", "选项B正确。", "correct"),
        ("B", "The answer is <b>B</b>.", "correct"),
        ("B", "15 is the answer.", "correct"),
        ("B", "My final choice: B", "correct"),
        ("B", "(A) is wrong, (B) is wrong. The answer is D.", "incorrect"),
        ("B", "A and B are both plausible, so let me think", "unverifiable"),
    ],
)
def test_choice_compares_option_letters(gold: str, text: str, outcome: str) -> None:
    verdict = verify_one(gold, response=text, kind="choice", question=QUESTION)
    assert verdict.outcome.value == outcome, verdict


def test_gold_text_and_letter_of_an_option_are_the_same() -> None:
    for answer, right in ((r"\boxed{B}", True), ("The answer is 15.", True), ("The answer is (A).", False)):
        verdict = verify_one("15", response=answer, question=QUESTION)
        assert (verdict.outcome is Outcome.CORRECT) is right, verdict


def test_auto_selects_the_verifier_by_the_gold_answer() -> None:
    assert verify_one("B", response="The answer is (B).").method == "choice"
    assert verify_one("12", response=r"\boxed{12}").method == "string"


def test_exact_text_and_numeric_verdicts() -> None:
    assert verify_one("New York", " New  York", kind="exact").outcome is Outcome.CORRECT
    assert verify_one("New York", "new york", kind="exact").outcome is Outcome.INCORRECT
    assert verify_one("New York", "new york", kind="exact", case=False).outcome is Outcome.CORRECT
    assert verify_one("The Nile", "nile.", kind="text").outcome is Outcome.CORRECT
    assert verify_one("The Nile", "It is the Nile, I believe", kind="text").outcome is Outcome.INCORRECT
    assert verify_one("The Nile", "It is the Nile, I believe", kind="text", match="contains").outcome is Outcome.CORRECT
    assert verify_one("The Nile", "Amazon", kind="text", match="f1").outcome is Outcome.INCORRECT
    assert verify_one("长江", "长江。", kind="text").outcome is Outcome.CORRECT
    assert verify_one("9.81", "9.8", kind="numeric", rel_tol=0.01).outcome is Outcome.CORRECT
    assert verify_one("9.81", "9.7", kind="numeric", rel_tol=0.01).outcome is Outcome.INCORRECT
    assert verify_one("4.5e33", r"4.5\times10^{33}", kind="numeric").outcome is Outcome.CORRECT
    assert verify_one("9.81", "unknown", kind="numeric").outcome is Outcome.INCORRECT


@pytest.mark.parametrize("task", ["leg_counting", "basic_arithmetic", "spiral_matrix", "word_sorting", "countdown"])
def test_reasoning_gym_scores_correct_wrong_and_missing_answers(task: str) -> None:
    entry = next(gym.problems(task, {}, seed=3)).entry
    spec = {"task": task, "entry": entry}
    gold = entry["answer"] or entry["metadata"].get("expression")
    for response in (rf"\boxed{{{gold}}}", f"Final answer: {gold}", f"<answer>{gold}</answer>"):
        assert (
            verify_one(entry["answer"], response=response, kind="reasoning_gym", spec=spec).outcome is Outcome.CORRECT
        )
    wrong = verify_one(entry["answer"], response="Final answer: 7 purple", kind="reasoning_gym", spec=spec)
    assert wrong.outcome is Outcome.INCORRECT
    missing = verify_one(entry["answer"], response=gold, kind="reasoning_gym", spec=spec, finish_reason="length")
    assert missing.method == "no_answer"


def same(one: str, two: str) -> bool:
    return verify_one(one, two, kind="math").outcome is Outcome.CORRECT


def test_consensus_counts_equivalent_answers_together() -> None:
    found = consensus(["1/2", "3", "0.5", None, r"\frac12"], same)
    assert (found.answer, found.votes, found.samples) == ("1/2", 3, 5)
    assert found.share == pytest.approx(0.6)
    assert found.margin == pytest.approx(0.4)
    assert found.classes == (0, 1, 0, None, 0)
    assert consensus(["1", "2"], same).answer is None
    assert consensus([None], same).answer is None


def test_wilson_interval_against_the_textbook() -> None:
    rate = wilson(8, 10)
    assert (rate.low, rate.high) == (pytest.approx(0.490162, abs=1e-5), pytest.approx(0.943318, abs=1e-5))
    assert wilson(0, 4).low == 0
    assert wilson(4, 4).high == 1
    assert (wilson(0, 0).low, wilson(0, 0).high) == (0, 1)
    with pytest.raises(ValueError, match="5 of 4"):
        wilson(5, 4)


def test_pass_rate_does_not_count_verifier_errors() -> None:
    outcomes = [Outcome.CORRECT, Outcome.UNVERIFIABLE, Outcome.VERIFIER_ERROR, Outcome.INCORRECT]
    rate = pass_rate(outcomes)
    assert (rate.passes, rate.samples) == (1, 3)


async def test_judge_takes_the_majority_and_keeps_the_outcome_of_the_rules() -> None:
    rules = Verdict(outcome=Outcome.INCORRECT, method="text", verifier="math", version="1")
    replies = ["[SAME]", "I cannot tell", "Both say it.\n[same]"]
    asked: list[int] = []

    async def ask(number: int) -> str:
        asked.append(number)
        return replies[number]

    found = await judge(ask, rules, votes=3)
    assert (found.outcome, found.same, found.unclear, found.agrees) == (Outcome.CORRECT, 2, 1, False)
    assert asked == [0, 1, 2]
    replies[:] = ["[SAME] or [DIFFERENT]", "[DIFFERENT]", "no idea"]
    assert (await judge(ask, rules, votes=3)).outcome is Outcome.UNVERIFIABLE
    assert read_vote("[SAME] [DIFFERENT]") is None
    with pytest.raises(ValueError, match="odd"):
        await judge(ask, rules, votes=2)


def command(*arguments: str) -> tuple[int, str, BaseException | None]:
    app = typer.Typer()
    app.command()(verify)
    done = CliRunner().invoke(app, list(arguments))
    return done.exit_code, done.stdout, done.exception


def test_the_verify_command_checks_one_pair() -> None:
    code, out, _ = command("--gold", "1/2", "--answer", "0.5", "--json")
    row = json.loads(out)
    assert (code, row["verdict"], row["extracted"], row["version"] != "") == (0, "correct", "0.5", True)
    assert command("--gold", "12 cm", "--answer", "12", "--policy", "units=required")[1].startswith("incorrect")
    assert isinstance(command("--gold", "5")[2], UserError)


def test_the_verify_command_checks_a_file(tmp_path: Path) -> None:
    rows = [
        {"id": 7, "gold": "5", "answer": "5.0"},
        {"gold": "5", "response": r"<think>\boxed{5}</think>It is \boxed{6}."},
        {"gold": "B", "response": "The answer is (B).", "kind": "choice"},
    ]
    file = tmp_path / "pairs.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)) + "\n", "utf-8")
    _, out, _ = command("--file", str(file), "--json")
    found = [json.loads(line) for line in out.splitlines()]
    assert [row["verdict"] for row in found] == ["correct", "incorrect", "correct"]
    assert [row["extracted"] for row in found] == ["5.0", "6", "(B)"]
    assert found[0]["id"] == 7
    file.write_text('{"gold": "5"}\nnot json\n{"golt": "5", "answer": "5"}\n', "utf-8")
    error = command("--file", str(file))[2]
    assert isinstance(error, UserError)
    file.write_text('{"gold": "5"}\n{"golt": "5", "answer": "5"}\n', "utf-8")
    error = command("--file", str(file))[2]
    assert isinstance(error, UserError)
    assert [mistake.line for mistake in error.mistakes] == [1, 2]
