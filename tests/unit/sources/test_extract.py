"""Answers out of worked solutions."""

import pytest

from tracefactory.reading.extract import boxed, gsm8k, last_line, without_unit


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("48/2 = <<48/2=24>>24.\n#### 24", "24"),
        ("#### 1\n#### 2,125,000", "2125000"),
        ("#### -3 ", "-3"),
        ("#### (1, 234)", "(1, 234)"),
        ("#### 1,2,3", "1,2,3"),
        ("no mark", None),
        ("####  ", None),
    ],
)
def test_gsm8k_answers_are_extracted(text: str, answer: str | None):
    assert gsm8k(text) == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"so \boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
        (r"\boxed{1} and then \boxed{2}", "2"),
        (r"\boxed {3}", "3"),
        (r"\fbox{4}", "4"),
        (r"$\boxed 5$", "5"),
        (r"$\boxed\pi$", r"\pi"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{\left\{x : \text{a}\right.}", r"\left\{x : \text{a}\right."),
        (r"\boxed{ \boxed{6} }", "6"),
        (r"\boxed{7", None),
        (r"\boxed{}", None),
        (r"\boxedstyle{8}", None),
        (r"\boxed", None),
        ("none", None),
    ],
)
def test_boxed_answers_are_extracted(text: str, answer: str | None):
    assert boxed(text) == answer


def test_last_line_and_unit_answers_are_extracted():
    assert last_line("a\n b \n\n") == "b"
    assert last_line(" ") is None
    assert without_unit("9 (apples)") == "9"
    assert without_unit("(9) (apples)") == "(9)"
    assert without_unit("f(x) = 3") == "f(x) = 3"
