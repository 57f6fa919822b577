"""Normal forms of questions, and JSON text of anything."""

import json
from datetime import date

import pytest

from tracefactory.core.rows import Problem
from tracefactory.reading.base import json_text, normalised_question


def normal(question: str) -> str:
    return normalised_question(Problem.make(question=question, answer=None, verifier="math"))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("What is  6\ttimes 7?\n", "what is 6 times 7?"),
        ("Ｗｈａｔ？", "what?"),
        ("e\u0301tale", "étale"),
        ("Straße", "STRASSE"),
        ("ﬁnd 𝑥", "find x"),
        ("a\u200bb\u00adc\ufeff", "abc"),
        ("多少 页", "多少\u3000页"),
    ],
)
def test_formatting_does_not_change_the_normalised_question(one: str, other: str):
    assert normal(one) == normal(other)


@pytest.mark.parametrize(
    ("one", "other"), [("2³", "23"), ("x₂", "x2"), ("1½", "11/2"), ("2 3", "23"), ("a+b", "a-b"), ("9", "６ 9")]
)
def test_meaning_changes_the_normalised_question(one: str, other: str):
    assert normal(one) != normal(other)


def test_json_text_of_anything_is_json_in_utf8():
    value = {"a": float("nan"), "b": [1e400, "\ud800", "é"], "c": date(2026, 1, 2), "d": b"x"}
    text = json_text(value)
    text.encode("utf-8")
    assert json.loads(text) == {"a": None, "b": [None, "\ud800", "é"], "c": "2026-01-02", "d": "b'x'"}
