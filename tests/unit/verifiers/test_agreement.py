"""The comparison with labels, and math-verify beside it."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from tracefactory.core.errors import UserError
from tracefactory.core.rows import Outcome
from tracefactory.verification import reference
from tracefactory.verification.agreement import Pair, Score, compare, forms, read_pairs, score, table, verify_pairs
from tracefactory.verification.reference import MathVerify


@pytest.fixture(scope="module")
def other() -> Iterator[MathVerify]:
    with MathVerify() as one:
        yield one


def pair(gold: str, text: str, label: object, *, bare: bool = False) -> Pair:
    return Pair.model_validate({"gold": gold, "text": text, "bare": bare, "label": label})


def test_labels_are_read_as_truth_values_or_words(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [
        {"gold": "1", "prediction": "1", "label": True},
        {"gold": "2", "response": "The answer is 3.", "label": False},
        {"gold": "3", "text": "Let us see.", "label": "no_answer", "finish": "length"},
        {"gold": "4", "answer": "4", "label": None},
    ]
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)) + "\n", "utf-8")
    pairs = read_pairs(path)
    assert [one.label for one in pairs] == ["correct", "incorrect", "no_answer"]
    assert [one.bare for one in pairs] == [True, False, False]
    assert pairs[2].task.cut_off


@pytest.mark.parametrize("row", ['{"gold": "1", "label": true}', '{"gold": "1", "text": "1", "label": "maybe"}'])
def test_an_invalid_row_is_named(tmp_path: Path, row: str) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text(row, "utf-8")
    with pytest.raises(UserError, match=r"pairs\.jsonl:1: "):
        read_pairs(path)


def test_each_disagreement_is_counted_once_by_its_kind() -> None:
    labels = ["correct", "correct", "correct", "incorrect", "incorrect", "no_answer", "no_answer"]
    outcomes = ["correct", "incorrect", "verifier_error", "correct", "unverifiable", "incorrect", "unverifiable"]
    found = score([pair("1", "1", label) for label in labels], [Outcome(one) for one in outcomes])
    expected = {"pairs": 7, "agreed": 3, "false_positives": 1, "false_negatives": 2, "no_answer": 2, "timeouts": 1}
    assert found == Score(**expected)


def test_math_verify_gets_the_text_the_answer_between_signs_and_the_box() -> None:
    pairs = [
        pair("1/2", "So the answer is 1/2.", "correct"),
        pair("1/2", r"So the answer is \boxed{1/2}.", "correct"),
        pair("1/2", "1/2", "correct", bare=True),
        pair("1/2", "Let us see.", "no_answer"),
    ]
    found = [forms(one, verdict) for one, verdict in zip(pairs, verify_pairs(pairs), strict=True)]
    assert found[0] == ("So the answer is 1/2.", "So the answer is $1/2$.", r"\boxed{1/2}")
    assert found[1] == (r"So the answer is \boxed{1/2}.", r"So the answer is \boxed{1/2}.", r"\boxed{1/2}")
    assert found[2] == ("1/2", "$1/2$", r"\boxed{1/2}")
    assert found[3] == ("Let us see.", "Let us see.", "")


def test_math_verify_beside_ours(other: MathVerify) -> None:
    pairs = [pair("18", "The answer is 18.", "correct"), pair("18", "Let us see.", "no_answer")]
    row = compare("two", pairs, other)
    assert row.own.agreed == 2
    assert [one.agreed for one in row.others] == [2, 2, 2]
    assert "| two | 2 | 100.0% | 0 | 0 | 0 | 100.0% (0, 0, 0) |" in table([row])


def test_time_outs_are_told_from_the_other_warnings_of_math_verify() -> None:
    counter = reference._Timeouts()
    for message in ("Timeout during parsing: 9^9", "Timeout during comparison", "a gold answer is empty"):
        counter.emit(logging.makeLogRecord({"msg": message}))
    assert counter.count == 2


def test_a_time_out_of_math_verify_is_no_verdict(other: MathVerify, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference, "SECONDS", 1.0)
    assert other.judge("9", r"\boxed{9^{9^{9^{9}}}}") is Outcome.VERIFIER_ERROR
    monkeypatch.undo()
    assert other.judge("9", r"\boxed{9}") is Outcome.CORRECT
    assert other.judge("9", r"\boxed{8}") is Outcome.INCORRECT
