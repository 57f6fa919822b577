"""Where a completion states its answer, and when it states none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tracefactory.schema import Outcome
from tracefactory.verifiers import verify_one
from tracefactory.verifiers.extract import extract, loops, split_thinking

DATA = next((up / "shared/data" for up in Path(__file__).resolve().parents if (up / "shared/data").is_dir()), None)
THINKING = "First I add 2 and 3, which gives 5. "

STATED = [
    (r"Adding up gives \boxed{\frac{3}{7}}.", r"\frac{3}{7}"),
    (r"First \boxed{4}, but the question asks for the double. It is \boxed{8}.", "8"),
    (r"\boxed{\boxed{9}}", "9"),
    (r"So \boxed{\text{(C)}}", r"\text{(C)}"),
    (r"The set is $\boxed{\{1, 2\}}$.", r"\{1, 2\}"),
    (r"We get \boxed{12", "12"),
    (r"We get \boxed12.", "12"),
    (r"\fbox{31}", "31"),
    (r"A first guess was \boxed{3}. The final answer is 7.", "7"),
    ("They pay 4 each.\n#### 1,250", "1,250"),
    ("**Answer:** B", "B"),
    ("**Answer**: 17 apples", "17 apples"),
    ("The answer is (D).", "(D)"),
    ("The correct option is A.", "A"),
    ("Answer:\n```\n93\n```", "93"),
    ("### Final Answer\n\n93", "93"),
    ("The answer is 3.5.", "3.5"),
    ("Final Answer: The largest such number is 34.", "34"),
    ("So they need 14 boxes.", "14"),
    ("所以最终答案是：12元。", "12元"),
    ("综上所述，选B。", "B"),
    ("答案：（C）", "（C）"),
    ("因此，小红一共有 24 个苹果。", "24 个苹果"),
    ("42", "42"),
    ("They compare the odds.\n16 people think that horse #12 will win.", "16"),
    ("Three trucks will be needed to carry 80 stones.", "Three"),
    (r"So the answer is $\text{Saturday}$.", r"\text{Saturday}"),
    ("Hence the answer is Saturday.", "Saturday"),
]
NOT_STATED = [
    "Try 12: 12 * 3 = 36, too large. Try 11: 11 * 3 = 33. Try 10:",
    "Maybe the answer is 12. Alternatively, maybe the answer is 15, or perhaps",
    "Therefore the answer is 135.\n\nWait, let me check that again. 2 * 27 = 54 and 3 * 15 = 45, then",
    "So we need f(3). Let us compute f(3) = 3 * 4",
    "Is the answer 12?",
    "The answer is hidden somewhere in the second equation, so we look at",
    r"Then \boxed{49}. Wait, but that contradicts what I found before, so let me look at m",
    "",
]


@pytest.mark.parametrize(("text", "answer"), STATED)
def test_stated_answer_is_found_where_it_stands(text: str, answer: str) -> None:
    found = extract(text)
    assert found is not None
    assert found.text == answer
    assert text[found.start : found.end].strip() == answer


@pytest.mark.parametrize("text", NOT_STATED)
def test_passing_number_is_no_answer(text: str) -> None:
    assert extract(text) is None


def test_only_what_follows_the_thinking_counts() -> None:
    verdict = verify_one("5", response=rf"<think>{THINKING}\boxed{{7}}</think>The answer is $5$.")
    assert (verdict.outcome, verdict.extracted) == (Outcome.CORRECT, "5")
    verdict = verify_one("5", response=rf"<think>{THINKING}So \boxed{{5}}")
    assert (verdict.outcome, verdict.method) == (Outcome.UNVERIFIABLE, "no_answer")
    parts = split_thinking("<think>a</think>b<think>c</think>d")
    assert (parts.answer, parts.open) == ("d", False)


def test_cut_off_answers() -> None:
    assert extract("The final answer is 1", cut_off=True) is None  # perhaps 12
    assert extract(r"So \boxed{12", cut_off=True) is None
    stated = extract(r"So \boxed{12}. To double-check, 3 + 9", cut_off=True)
    assert stated is not None
    assert stated.text == "12"


def test_loop_is_recognised() -> None:
    loop = "Therefore m divides 3(m - 1)(m + 2). " * 40
    assert loops(loop)
    assert extract(loop) is None
    assert not loops("A text that ends like this one, without saying anything twice, is no loop at all, however long.")


def test_side_by_side_boxes_are_a_list_only_when_the_gold_is() -> None:
    text = r"The roots are \boxed{2} and \boxed{5}."
    assert verify_one("2, 5", response=text).outcome is Outcome.CORRECT
    assert verify_one("5", response=text).outcome is Outcome.CORRECT
    assert verify_one("2", response=text).outcome is Outcome.INCORRECT


@pytest.mark.skipif(DATA is None, reason="needs the shared data")
def test_real_long_traces() -> None:
    """Every trace that states its answer is judged as labelled; one that loops or breaks off is never right."""
    assert DATA is not None
    rows = [json.loads(line) for line in (DATA / "traces/aime25_long_cot.jsonl").read_text("utf-8").splitlines()]
    stated = 0
    for row in rows:
        verdict = verify_one(str(row["gold"]), response=row["response"])
        if verdict.method == "no_answer":
            tail = row["response"][-400:]
            assert "boxed" not in tail or "<End_of_Draft>" not in row["response"], row["id"]
        else:
            stated += 1
            assert (verdict.outcome is Outcome.CORRECT) is row["label"], row["id"]
    assert stated > 60
