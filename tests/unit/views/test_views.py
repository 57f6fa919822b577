"""What each view makes of a trace, and what it refuses."""

from __future__ import annotations

import json
import pickle
from typing import Any

import pyarrow as pa
import pytest

from tracefactory.schema import Outcome, Problem, Thinking, Trace, Verdict
from tracefactory.views import TRACKING, VIEWS, ViewError, tables

PROBLEM = Problem.make(question="2 + 2?", answer="4", verifier="math", source="here", licence="mit", meta='{"a":1}')
VERDICT = Verdict(outcome=Outcome.CORRECT, extracted="4", method="exact", verifier="math", version="1", seconds=0.25)
LONG = Trace(
    id="t1",
    problem=PROBLEM,
    parent_id="t0",
    teacher="long",
    model="org/big",
    revision="abc",
    style="long",
    seed=7,
    temperature=0.6,
    reasoning="Two and two.",
    answer_text="It is 4.",
    thinking=Thinking.CLOSED,
    prompt_tokens=10,
    completion_tokens=20,
    cost=0.5,
    verdict=VERDICT,
    measures={"b": 2.0, "a": 1.0},
)
SHORT = LONG.model_copy(update={"id": "t2", "style": "short", "reasoning": "", "thinking": Thinking.NONE})


def changed(**fields: Any) -> Trace:
    return LONG.model_copy(update=fields)


def test_sft_puts_reasoning_inline() -> None:
    rows = VIEWS.get("sft").rows
    assert rows(LONG)["prompt"] == [{"role": "user", "content": "2 + 2?"}]
    assert rows(LONG)["completion"] == [{"role": "assistant", "content": "<think>\nTwo and two.\n</think>\n\nIt is 4."}]
    assert rows(SHORT)["completion"] == [{"role": "assistant", "content": "It is 4."}]


def test_chat_keeps_reasoning_in_its_field() -> None:
    question, answer = VIEWS.get("chat").rows(LONG)["messages"]
    assert question == {"role": "user", "content": "2 + 2?", "reasoning_content": None}
    assert answer == {"role": "assistant", "content": "It is 4.", "reasoning_content": "Two and two."}
    assert VIEWS.get("chat").rows(SHORT)["messages"][1]["reasoning_content"] is None


def test_raw_has_every_field_but_wall_time() -> None:
    row = VIEWS.get("raw").rows(LONG)
    expected = json.loads(LONG.model_dump_json())
    del expected["verdict"]["seconds"]
    expected |= {"problem_id": PROBLEM.id, "measures": '{"a":1.0,"b":2.0}'}
    assert row == expected
    slower = changed(verdict=VERDICT.model_copy(update={"seconds": 9.0}))
    assert VIEWS.get("raw").rows(slower) == row


@pytest.mark.parametrize("name", list(VIEWS))
def test_rows_fit_the_declared_schema_and_can_be_traced(name: str) -> None:
    view = VIEWS.get(name)
    refused: list[Any] = []
    (table,) = tables(view, [LONG, SHORT], lambda *found: refused.append(found))
    assert not refused
    assert table.schema.equals(view.schema)
    assert table.to_pylist() == [view.rows(LONG), view.rows(SHORT)]
    assert {column: table[column][0].as_py() for column in TRACKING} == {
        "id": "t1",
        "problem_id": PROBLEM.id,
        "style": "long",
        "teacher": "long",
        "prompt_tokens": 10,
        "completion_tokens": 20,
    }
    assert set(view.rows(LONG)) == set(view.schema.names)
    assert not any(pa.types.is_null(field.type) for field in view.schema)


@pytest.mark.parametrize("name", ["sft", "chat"])
@pytest.mark.parametrize(
    ("trace", "reason"),
    [
        (changed(error="timeout"), "failed_sample"),
        (changed(refusal="I cannot"), "refused_sample"),
        (changed(thinking=Thinking.OPEN), "thinking_open"),
        (changed(answer_text=" \n"), "answer_empty"),
        (changed(reasoning="a </think> b"), "think_tag_inside"),
        (changed(answer_text="<think>again"), "think_tag_inside"),
    ],
)
def test_what_a_student_must_not_learn_is_refused(name: str, trace: Trace, reason: str) -> None:
    with pytest.raises(ViewError) as caught:
        VIEWS.get(name).rows(trace)
    assert caught.value.reason == reason
    assert VIEWS.get("raw").rows(trace)["id"] == "t1"


def test_a_measure_that_json_cannot_hold_is_refused() -> None:
    with pytest.raises(ViewError, match=r"measure_not_finite.* loss"):
        VIEWS.get("raw").rows(changed(measures={"loss": float("nan"), "ok": 1.0}))


def test_refused_traces_are_handed_over_and_the_rest_goes_on() -> None:
    refused: list[tuple[str, str]] = []
    many = [changed(id=f"t{number}", answer_text="" if number % 10 == 3 else "4") for number in range(1000)]
    batches = list(tables(VIEWS.get("sft"), many, lambda trace, error: refused.append((trace.id, error.reason))))
    assert refused == [(f"t{number}", "answer_empty") for number in range(3, 1000, 10)]
    assert sum(batch.num_rows for batch in batches) == 900
    assert len(batches) > 1


def test_errors_survive_pickling() -> None:
    copy = pickle.loads(pickle.dumps(ViewError("thinking_open", "never closed")))
    assert (copy.reason, copy.detail, str(copy)) == ("thinking_open", "never closed", "thinking_open: never closed")
