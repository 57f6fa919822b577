"""Where a completion states its answer, and when it states none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tracefactory.answers.extract import extract, loops
from tracefactory.answers.runs import KEPT, Shortened, shorten
from tracefactory.answers.sentences import is_value
from tracefactory.answers.thinking import split_thinking
from tracefactory.core.rows import Outcome
from tracefactory.verification.single import verify_one

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
    ("So they need 14 boxes.", "14 boxes"),
    ("所以最终答案是：12元。", "12元"),
    ("综上所述，选B。", "B"),
    ("答案：（C）", "（C）"),
    ("因此，小红一共有 24 个苹果。", "24 个苹果"),
    ("42", "42"),
    ("They compare the odds.\n16 people think that horse #12 will win.", "16"),
    ("Three trucks will be needed to carry 80 stones.", "Three"),
    (r"So the answer is $\text{Saturday}$.", r"\text{Saturday}"),
    # the last sentence concludes, with or without a full stop
    ("Therefore x = 12.", "x = 12"),
    ("Thus, the value of y is 12.", "12"),
    ("```python\nprint(6 * 2)\n```\nThe result is 12", "12"),
    ("We get k = 12", "k = 12"),
    ("So k - 1 = 11, thus k = 12", "12"),
    ("So 5 + 7 = 12 birds in all.", "12 birds"),
    ("The sum is 5 + 7, which equals 12.", "12"),
    ("Distance = 3 km/h × 4 h = 12 km", "12 km"),
    ("He is 12 miles from home at the end of those 4 hours.", "12"),
    ("Maya needs to pay $12 for 3 tickets.", "$12"),
    ("It takes 1 hour and 30 minutes, i.e. 90 minutes.", "90 minutes"),
    ("The maximum is $12$, achieved when $a = b = 6$.", "12"),
    ("They caught <<5+7=12>>12 fish.", "12"),
    ("Thus there are **12** such numbers between 1 and 100.", "12"),
    ("There are twelve eggs.", "twelve eggs"),
    ("The train arrives at 5:30 PM.", "5:30 PM"),
    ("Yes, she can afford it.", "Yes"),
    ("So the match is on Tuesday.", "Tuesday"),
    ("解得 $x=1$ 或 $x=2$。", "$x=1$ 或 $x=2$"),
    ("所以概率是50%。", "50%"),
    # displays, headings, emphasis, tables
    ("So\n$$k = 12$$", "k = 12"),
    ("So\n\\[\nk = 12.\n\\]", "k = 12"),
    (r"$$\begin{aligned} k &= 5+7 \\ &= 12 \end{aligned}$$", "12"),
    ("\\begin{equation}\nk = 12\n\\end{equation}", "k = 12"),
    ("All steps are done.\n\n**12**", "12"),
    ("All steps are done.\n\n**Answer: 12**", "12"),
    ("### Answer\n12", "12"),
    ("**Final Answer**\n\n12", "12"),
    (r"**Final Answer**: \boxed{12}", "12"),
    ("| a | 5 |\n| b | 7 |\n| **Total** | **12** |", "12"),
    ("#### Step 1: Count\nThere are 5.\n#### Step 2: Add\n5 + 7 = 12\n\nThe total is 12.", "12"),
    ("```\n12\n```", "12"),
    # other phrases, other languages, the other way round
    ("I get 12 as the answer.", "12"),
    ("So 12 is the answer.", "12"),
    ("Hence (B) is correct.", "(B)"),
    ("I think the correct option is (B) because it fits.", "(B)"),
    ("The correct answer should be 12.", "12"),
    ("The answer is 12!", "12"),
    ("The answer is 12 (five plus seven).", "12"),
    ("The answer is ***12***.", "12"),
    ("Final answer: **12** ✅", "12"),
    ("<answer> 12 </answer>", "12"),
    ("答案:12", "12"),
    ("故选:C", "C"),
    ("La respuesta es 12.", "12"),
    ("La réponse est 12.", "12"),
    ("Die Antwort ist 12.", "12"),
    ("Ответ: 12", "12"),
    # what stands behind an answer does not replace it
    (r"\boxed{12}\n\nHere the answer to the smaller case was 5.", "12"),
    ("**Answer: 12**\n\nThere are 5 red ones and 7 blue ones.", "12"),
    ("The answer is 12.\n\nCheck: 12 - 7 = 5 ✓", "12"),
    # boxes
    (r"$\boxed{ 12 }$", "12"),
    (r"\boxed{\text{The answer is } 12}", "12"),
    ("Hence the answer is Saturday.", "Saturday"),
]
NOT_STATED = [
    "Try 12: 12 * 3 = 36, too large. Try 11: 11 * 3 = 33. Try 10:",
    "Maybe the answer is 12. Alternatively, maybe the answer is 15, or perhaps",
    "Therefore the answer is 135.\n\nWait, let me check that again. 2 * 27 = 54 and 3 * 15 = 45, then",
    "So we need f(3). Let us compute f(3) = 3 * 4",
    "Is the answer 12?",
    "The answer is hidden somewhere in the second equation, so we look at",
    "Perhaps x = 3.",
    "Suppose x = 3.",
    "Let me try x = 3.",
    "Is it 3?",
    "maybe 3, let me check",
    "The answer is not 3.",
    "I don't know.",
    "Checking 3... no. Checking 4...",
    "Now, 1 + 2 = 3, and so we can",
    "So we need to find the value of 8 +",
    "So there are at least 8 cats.",
    "```python\nprint(8)",
    r"\boxed{}",
    r"Therefore, the answer is \boxed{",
    "The final answer is",
    "答案是",
    "可能是3",
    "设x=8，",
    "下面我们计算8的平方",
    r"Then \boxed{49}. Wait, but that contradicts what I found before, so let me look at m",
    "",
]


@pytest.mark.parametrize(("text", "answer"), STATED)
def test_stated_answer_is_extracted_with_its_position(text: str, answer: str) -> None:
    found = extract(text)
    assert found is not None
    assert found.text == answer
    assert text[found.start : found.end] == answer


@pytest.mark.parametrize("text", NOT_STATED)
def test_a_number_in_passing_is_not_an_answer(text: str) -> None:
    assert extract(text) is None


def test_text_inside_thinking_has_no_answer() -> None:
    verdict = verify_one("5", response=rf"<think>{THINKING}\boxed{{7}}</think>The answer is $5$.")
    assert (verdict.outcome, verdict.extracted) == (Outcome.CORRECT, "5")
    verdict = verify_one("5", response=rf"<think>{THINKING}So \boxed{{5}}")
    assert (verdict.outcome, verdict.method) == (Outcome.UNVERIFIABLE, "no_answer")
    parts = split_thinking("<think>a</think>b<think>c</think>d")
    assert (parts.answer, parts.open) == ("d", False)


def test_unfinished_statements_of_a_truncated_text_are_not_answers() -> None:
    assert extract("The final answer is 1", cut_off=True) is None  # perhaps 12
    assert extract(r"So \boxed{12", cut_off=True) is None
    stated = extract(r"So \boxed{12}. To double-check, 3 + 9", cut_off=True)
    assert stated is not None
    assert stated.text == "12"


def test_a_text_that_ends_in_a_loop_is_recognised() -> None:
    loop = "Therefore m divides 3(m - 1)(m + 2). " * 40
    assert loops(loop)
    assert extract(loop) is None
    assert not loops("A text that ends like this one, without saying anything twice, is no loop at all, however long.")


@pytest.mark.parametrize(
    "text",
    [
        "<think>{}</think>\n\n{}",
        "{}</think>{}",
        "<|channel|>analysis<|message|>{}<|end|><|start|>assistant<|channel|>final<|message|>{}<|return|>",
        "<|begin_of_thought|>{}<|end_of_thought|><|begin_of_solution|>{}<|end_of_solution|>",
        "◁think▷{}◁/think▷{}",
        "[THINK]{}[/THINK]{}",
        "<reasoning>{}</reasoning><answer>{}</answer>",
    ],
)
def test_thinking_tags_of_every_model_family_are_split(text: str) -> None:
    verdict = verify_one("5", response=text.format(r"maybe \boxed{7}, or \boxed{8}", "The answer is 5."))
    assert verdict.outcome is Outcome.CORRECT, verdict


def test_several_boxes_form_one_answer_of_several_parts() -> None:
    text = "(a) We add: \\boxed{2}\n\n(b) We subtract: \\boxed{5}"
    for gold, right in (("(a) 2 (b) 5", True), ("(2, 5)", True), ("2, 5", True), ("(a) 5 (b) 2", False)):
        assert (verify_one(gold, response=text).outcome is Outcome.CORRECT) is right, gold


def test_adjacent_boxes_are_a_list_only_when_the_gold_answer_is_one() -> None:
    text = r"The roots are \boxed{2} and \boxed{5}."
    listed = verify_one("2, 5", response=text)
    assert listed.extracted == text[listed.span_start : listed.span_end] == r"\boxed{2} and \boxed{5}"
    assert verify_one("2, 5", response=text).outcome is Outcome.CORRECT
    assert verify_one("5", response=text).outcome is Outcome.CORRECT
    assert verify_one("2", response=text).outcome is Outcome.INCORRECT


@pytest.mark.skipif(DATA is None, reason="needs the shared data")
def test_answers_of_real_long_traces_are_extracted() -> None:
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


@pytest.mark.parametrize("piece", [r"\frac{1}{2}", r"y = \frac{1}{2}", r"y = 3\cdot ab", r"y = \theta xy"])
def test_commands_of_latex_are_no_words(piece: str) -> None:
    assert is_value(piece)


@pytest.mark.parametrize("piece", ["y = three apples", r"y = \text{three apples}", "the total = 12"])
def test_words_are_no_value(piece: str) -> None:
    assert not is_value(piece)


JSON_TRAPS = [
    ('{"reasoning": "16 - 3 - 4 = 9", "answer": "18"}', "18"),
    ('```json\n{"answer": 18}\n```', "18"),
    ('Here it is:\n```json\n{"final_answer": 18, "confidence": 0.9}\n```', "18"),
    ('{"answer": "\\frac{1}{2}"}', r"\frac{1}{2}"),  # one backslash: JSON reads a form feed
    ('{"answer": "\\\\frac{1}{2}"}', r"\frac{1}{2}"),
    ('{"answer": {"value": 18, "unit": "eggs"}}', "18 eggs"),
    ('{"result": {"answer": [1, 2]}}', "1, 2"),
    ("{'answer': 18}", "18"),
    ('{"solution": "We add. \\nSo the answer is 18."}', "18"),
    ('{"eggs": 18, "reasoning": "x"}', "18"),
    ('{"answer": true}', "true"),
]


@pytest.mark.parametrize(("text", "answer"), JSON_TRAPS)
def test_the_answer_field_of_an_object_is_read(text: str, answer: str) -> None:
    found = extract(text)
    assert found is not None
    assert found.value == answer
    assert found.confidence >= 0.9
    assert text[found.start : found.end] == found.text


@pytest.mark.parametrize(
    "text",
    [
        '{"reasoning": "9 * 2 = 18", "steps": [18]}',
        '{"reasoning": "9 * 2 = 18", "answer": null}',
        '{"reasoning": "9 * 2 = 18", "answer": ""}',
        '{"reasoning": "9 * 2 = 18", "answer": ',
        '{"a": ' * 5000 + "1" + "}" * 5000,
    ],
)
def test_an_object_without_an_answer_states_none(text: str) -> None:
    assert extract(text) is None


def test_the_name_of_the_field_is_a_parameter() -> None:
    text = '{"answer": "see below", "lösung": 18}'
    assert verify_one("18", response=text).outcome is not Outcome.CORRECT
    assert verify_one("18", response=text, answer_fields=["lösung"]).outcome is Outcome.CORRECT


def test_confidence_decides_between_incorrect_and_uncertain() -> None:
    text = "She buys 5 eggs more. Sally now has 18 eggs."
    right, wrong = verify_one("18", response=text), verify_one("17", response=text)
    assert (right.outcome, right.confidence) == (Outcome.CORRECT, 0.4)
    assert (wrong.outcome, wrong.method) == (Outcome.UNVERIFIABLE, "uncertain_answer")
    strict = verify_one("17", response=text, min_confidence_incorrect=0.4)
    assert strict.outcome is Outcome.INCORRECT
    assert verify_one("18", response=text, min_confidence=0.5).method == "no_answer"
    boxed = verify_one("17", response=r"\boxed{18}")
    assert (boxed.outcome, boxed.confidence) == (Outcome.INCORRECT, 1.0)


LONG_RUNS = {
    "spaces": ("the answer is" + " " * 1_000_000 + "18.", "18"),
    "lines": ("Answer:" + "\n" * 100_000 + "18", "18"),
    "mixed": ("Final answer: " + " \n\t" * 100_000 + "**18**", "18"),
    "zero_width": ("The answer is " + "\u200b" * 50_000 + "18.", "18"),
    "rule": ("=" * 50_000 + "\nThe answer is 18.\n" + "-" * 50_000, "18"),
    "boxes": (r"\boxed{1}" * 100_000 + r"\boxed{18}", "18"),
}


@pytest.mark.parametrize("name", LONG_RUNS)
def test_an_answer_is_found_among_long_runs_at_its_place(name: str) -> None:
    text, answer = LONG_RUNS[name]
    found = extract(text)
    assert found is not None
    assert found.value.strip("\u200b") == answer
    assert text[found.start : found.end] == found.text


def test_a_place_in_a_shortened_text_is_found_in_the_long_one() -> None:
    text = "a" + " " * 100 + "b" + "-" * 60 + "c" + "\n" * 13 + "d"
    short = shorten(text)
    assert len(short.text) == 4 + 3 * KEPT
    for sign in "abcd":
        assert text[short.place(short.text.index(sign))] == sign
    assert shorten("a  b -- c") == Shortened("a  b -- c")
