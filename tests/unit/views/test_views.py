"""What each view makes of a trace, and what it refuses."""

from __future__ import annotations

import json
import pickle
from typing import Any

import pyarrow as pa
import pytest

from tracefactory.core.rows import Outcome, Problem, Thinking, Trace, Verdict
from tracefactory.pruning import PruneItem, PruneResult, Ruler, derive
from tracefactory.pruning.base import parent
from tracefactory.publish.views import TRACKING, VIEWS, ViewError, tables
from tracefactory.text.steps import Granularity

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
STEPS = "Two and two.\n\nLet me check: 2 + 2 = 4.\n\nSo the answer is 4."


def pruned(trace: Trace) -> Trace:
    """Make the row that a prune stage makes when it drops the check of a trace with the reasoning above."""
    item = PruneItem.of(trace.model_copy(update={"reasoning": STEPS, "thinking": Thinking.CLOSED}))
    result = PruneResult(
        id=trace.id, kept=(0, 2), reasoning="Two and two.\n\nSo the answer is 4.", answer_text="So it is 4."
    )
    found = derive(item, result, pruner="p", granularity=Granularity.STEP, ruler=Ruler.of(item.trace, None))
    made = {"reasoning": result.reasoning, "answer_text": result.answer_text, "parent_id": f"raw-{trace.id}"}
    return item.trace.model_copy(update={**made, "derivation": found.model_dump_json(exclude_defaults=True)})


def stands(trace: Trace) -> Trace:
    """Make the row that a prune stage makes when the raw text stands."""
    item = PruneItem.of(trace)
    found = derive(
        item, parent(item, "never_valid"), pruner="p", granularity=Granularity.STEP, ruler=Ruler.of(trace, None)
    )
    return trace.model_copy(update={"derivation": found.model_dump_json(exclude_defaults=True)})


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
    traces = [pruned(LONG), pruned(SHORT)] if name == "preference" else [LONG, SHORT]
    (table,) = tables(view, traces, lambda *found: refused.append(found))
    assert not refused
    assert table.schema.equals(view.schema)
    assert table.to_pylist() == [view.rows(trace) for trace in traces]
    assert {column: table[column][0].as_py() for column in TRACKING} == {
        "id": "t1",
        "problem_id": PROBLEM.id,
        "style": "long",
        "teacher": "long",
        "prompt_tokens": 10,
        "completion_tokens": 20,
    }
    assert set(view.rows(traces[0])) == set(view.schema.names)
    assert not any(pa.types.is_null(field.type) for field in view.schema)


@pytest.mark.parametrize("name", ["sft", "chat", "masked", "preference"])
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


def test_masked_holds_the_raw_text_and_where_it_was_pruned() -> None:
    row = VIEWS.get("masked").rows(pruned(LONG))
    text = row["completion"][0]["content"]
    assert text == f"<think>\n{STEPS}\n</think>\n\nSo it is 4."
    assert [text[span["start"] : span["end"]] for span in row["masked"]] == ["Let me check: 2 + 2 = 4.\n\n"]
    assert VIEWS.get("masked").rows(stands(LONG))["masked"] == []
    assert VIEWS.get("masked").rows(stands(LONG))["completion"] == VIEWS.get("sft").rows(LONG)["completion"]


def test_masked_leaves_out_what_is_no_selection_of_the_raw_text() -> None:
    item = PruneItem.of(LONG)
    result = PruneResult(id="t1", kept=(), reasoning="2 + 2.", added="2 + 2.", answer_text="4")
    found = derive(item, result, pruner="p", granularity=Granularity.STEP, ruler=Ruler.of(LONG, None))
    rewritten = changed(reasoning="2 + 2.", derivation=found.model_dump_json())
    with pytest.raises(ViewError, match="not_a_selection"):
        VIEWS.get("masked").rows(rewritten)


def test_preference_has_both_texts_and_how_long_they_are() -> None:
    row = VIEWS.get("preference").rows(pruned(LONG))
    assert row["chosen"][0]["content"] == "<think>\nTwo and two.\n\nSo the answer is 4.\n</think>\n\nSo it is 4."
    assert row["rejected"][0]["content"] == f"<think>\n{STEPS}\n</think>\n\nIt is 4."
    assert (row["chosen_outcome"], row["rejected_outcome"]) == ("correct", "correct")
    assert row["chosen_length"] < row["rejected_length"] == LONG.completion_tokens
    assert row["length_unit"] == "estimated_tokens"
    with pytest.raises(ViewError, match="never_valid"):
        VIEWS.get("preference").rows(stands(LONG))
