"""What each view makes of a trace, and what it refuses."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tracefactory.core.columns import column_like
from tracefactory.core.rows import Outcome, Parent, ParentRole, Problem, StepLabel, Thinking, Trace, Turn, Verdict
from tracefactory.core.stage import Batch
from tracefactory.pruning import LengthCounter, PruneItem, PruneResult, derive
from tracefactory.pruning.base import parent
from tracefactory.publish.views import VIEWS, Group, Row, Tracked, ViewError
from tracefactory.publish.writing import write_range
from tracefactory.text.steps import Granularity

PROBLEM = Problem.make(
    question="2 + 2?",
    answer="4",
    verifier="math",
    source="here",
    licence="mit",
    meta='{"a":1}',
    measures={"level": 3.0},
    fields={"tags": ("x",)},
)
VERDICT = Verdict(outcome=Outcome.CORRECT, extracted="4", method="exact", verifier="math", version="1", seconds=0.25)
LONG = Trace(
    id="t1",
    problem=PROBLEM,
    parents=(Parent(id="t0", role=ParentRole.REVISES),),
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
    found = derive(item, result, pruner="p", granularity=Granularity.STEP, counter=LengthCounter.of(item.trace, None))
    parents = (Parent(id=f"raw-{trace.id}", role=ParentRole.PRUNED),)
    made = {"reasoning": result.reasoning, "answer_text": result.answer_text, "parents": parents}
    return item.trace.model_copy(update={**made, "derivation": found.model_dump_json(exclude_defaults=True)})


def stands(trace: Trace) -> Trace:
    """Make the row that a prune stage makes when the raw text stands."""
    item = PruneItem.of(trace)
    found = derive(
        item,
        parent(item, "never_valid"),
        pruner="p",
        granularity=Granularity.STEP,
        counter=LengthCounter.of(trace, None),
    )
    return trace.model_copy(update={"derivation": found.model_dump_json(exclude_defaults=True)})


def changed(**fields: Any) -> Trace:
    return LONG.model_copy(update=fields)


def row_of(name: str, trace: Trace) -> Row:
    """Return the one row that a view has of a trace, or raise why it has none."""
    made = VIEWS.get(name).rows(Group(trace.problem, [trace]))
    for error in made.refused.values():
        raise error
    (row,) = made.rows
    return row


def test_sft_puts_reasoning_inline() -> None:
    row = row_of("sft", LONG)
    assert row["prompt"] == [{"role": "user", "content": "2 + 2?"}]
    assert row["completion"] == [{"role": "assistant", "content": "<think>\nTwo and two.\n</think>\n\nIt is 4."}]
    assert row_of("sft", SHORT)["completion"] == [{"role": "assistant", "content": "It is 4."}]


def test_chat_keeps_reasoning_in_its_field() -> None:
    question, answer = row_of("chat", LONG)["messages"]
    assert question == {"role": "user", "content": "2 + 2?", "reasoning_content": None}
    assert answer == {"role": "assistant", "content": "It is 4.", "reasoning_content": "Two and two."}
    assert row_of("chat", SHORT)["messages"][1]["reasoning_content"] is None


def test_raw_has_every_field_but_wall_time_and_logs() -> None:
    row = row_of("raw", LONG)
    expected = json.loads(LONG.model_dump_json())
    del expected["verdict"]["seconds"], expected["verdict"]["log"]
    del expected["problem"]["measures"], expected["problem"]["fields"]
    # What stages measured of the problem and of the trace stands together.
    expected |= {"problem_id": PROBLEM.id, "measures": {"a": 1.0, "b": 2.0, "level": 3.0}, "fields": {"tags": ("x",)}}
    assert row == expected
    slower = changed(verdict=VERDICT.model_copy(update={"seconds": 9.0, "log": "what a program wrote"}))
    assert row_of("raw", slower) == row


@pytest.mark.parametrize("method", ["exception", "crash", "judge"])
def test_raw_does_not_tell_of_the_machine(method: str) -> None:
    update = {"method": method, "outcome": Outcome.VERIFIER_ERROR, "detail": "OSError: /home/me/project/.env"}
    assert row_of("raw", changed(verdict=VERDICT.model_copy(update=update)))["verdict"]["detail"] is None


def test_raw_names_a_model_without_the_folders_of_this_machine() -> None:
    named = {"/srv/weights/big.gguf": "big.gguf", "~/weights/big": "big", "org/big": "org/big", "env:BIG": "env:BIG"}
    for model, shown in named.items():
        assert row_of("raw", changed(model=model))["model"] == shown


def test_raw_has_the_columns_that_stages_declared() -> None:
    columns = [column_like("b", 1.0), column_like("a", 1.0), column_like("tags", ("x",)), column_like("verdict", None)]
    schema = VIEWS.get("raw").schema(columns)
    assert schema.field("measures").type == pa.struct([("a", pa.float64()), ("b", pa.float64())])
    assert schema.field("fields").type == pa.struct([("tags", pa.list_(pa.string()))])
    assert [name for name in schema.names if name not in ("measures", "fields")] == VIEWS.get("raw").schema().names
    assert VIEWS.get("sft").schema(columns) == VIEWS.get("sft").schema()


@pytest.mark.parametrize("name", list(VIEWS))
def test_rows_fit_the_declared_schema_and_can_be_traced(name: str, tmp_path: Path) -> None:
    view = VIEWS.get(name)
    step = StepLabel(start=0, end=3, label="correct", source="me")
    traces = {
        "preference": [pruned(LONG), pruned(SHORT)],
        "ranking": [pruned(LONG), pruned(SHORT)],
        "steps": [LONG.model_copy(update={"id": one, "steps": (step,)}) for one in ("t1", "t2")],
    }.get(name, [LONG, SHORT])
    columns = [*(column_like(column, 1.0) for column in ("a", "b", "level")), column_like("tags", ("x",))]
    part = write_range(tmp_path, 0, [name], [Batch(traces=traces)], columns)
    assert (part.refused, part.views[name].left_out) == ({}, {})
    assert part.views[name].file is not None
    table = pq.read_table(part.views[name].file)
    rows = view.rows(Group(PROBLEM, traces)).rows
    schema = view.schema(columns)
    assert table.schema.equals(schema)
    assert table.to_pylist() == [{**row, **_as_lists(row)} for row in rows]
    assert len(rows) == (1 if name == "rlvr" else 2)
    assert set(rows[0]) == set(schema.names)
    assert not any(pa.types.is_null(field.type) for field in schema)
    tracked = {
        "id": "t1",
        "problem_id": PROBLEM.id,
        "style": "long",
        "teacher": "long",
        "prompt_tokens": 10,
        "completion_tokens": 20,
    }
    assert tracked.keys() == Tracked.model_fields.keys()
    if name == "rlvr":  # of the problem, whoever wrote of it
        tracked = {"id": PROBLEM.id, "problem_id": PROBLEM.id}
    assert {column: table[column][0].as_py() for column in tracked} == tracked


def _as_lists(row: Row) -> Row:
    """Return the fields of a row as they are read back: a tuple is a list then."""
    return {"fields": {name: list(value) for name, value in row["fields"].items()}} if "fields" in row else {}


@pytest.mark.parametrize("name", ["sft", "chat", "masked", "messages", "preference", "ranking", "tool_use"])
@pytest.mark.parametrize(
    ("trace", "reason"),
    [
        (changed(refusal="I cannot"), "refused_sample"),
        (changed(thinking=Thinking.OPEN), "thinking_open"),
        (changed(answer_text=" \n"), "answer_empty"),
        (changed(reasoning="a </think> b"), "think_tag_inside"),
        (changed(answer_text="<think>again"), "think_tag_inside"),
        (changed(turns=(Turn(role="assistant", content="</think>"),)), "think_tag_inside"),
    ],
)
def test_a_trace_that_is_unfit_for_training_is_refused(name: str, trace: Trace, reason: str) -> None:
    with pytest.raises(ViewError) as caught:
        row_of(name, trace)
    assert caught.value.reason == reason
    assert row_of("raw", trace)["id"] == "t1"


def test_refused_traces_are_reported_and_the_others_have_rows() -> None:
    many = [changed(id=f"t{number}", answer_text="" if number % 10 == 3 else "4") for number in range(1000)]
    made = VIEWS.get("sft").rows(Group(PROBLEM, many))
    assert [(trace_id, error.reason) for trace_id, error in made.refused.items()] == [
        (f"t{number}", "answer_empty") for number in range(3, 1000, 10)
    ]
    assert [row["id"] for row in made.rows] == [f"t{number}" for number in range(1000) if number % 10 != 3]


def test_errors_survive_pickling() -> None:
    copy = pickle.loads(pickle.dumps(ViewError("thinking_open", "never closed")))
    assert (copy.reason, copy.detail, str(copy)) == ("thinking_open", "never closed", "thinking_open: never closed")


def test_messages_are_roles_and_texts_with_the_reasoning_of_every_turn_inline() -> None:
    turns = (Turn(role="assistant", content="5.", reasoning="Quickly."), Turn(role="user", content="Wrong."))
    row = row_of("messages", changed(turns=turns))
    assert row["messages"] == [
        {"role": "user", "content": "2 + 2?"},
        {"role": "assistant", "content": "<think>\nQuickly.\n</think>\n\n5."},
        {"role": "user", "content": "Wrong."},
        {"role": "assistant", "content": "<think>\nTwo and two.\n</think>\n\nIt is 4."},
    ]
    assert [*row_of("sft", changed(turns=turns))["prompt"]] == row["messages"][:-1]


@pytest.mark.parametrize("role", ["system", "user"])
def test_messages_omit_conversations_that_a_trainer_would_skip(role: Any) -> None:
    with pytest.raises(ViewError, match="not_in_turn"):
        row_of("messages", changed(turns=(Turn(role=role, content="Go on."),)))


def test_masked_has_the_raw_text_and_the_pruned_ranges() -> None:
    question, answer = row_of("masked", pruned(LONG))["masked_messages"]
    assert question == {"role": "user", "content": "2 + 2?", "train_detail": None}
    text = answer["content"]
    assert text == f"<think>\n{STEPS}\n</think>\n\nSo it is 4."
    details = [(one["begin_offset"], one["end_offset"] + 1, one["train"]) for one in answer["train_detail"]]
    assert [(text[start:end], train) for start, end, train in details] == [
        ("<think>\nTwo and two.\n\n", True),
        ("Let me check: 2 + 2 = 4.\n\n", False),
        ("So the answer is 4.\n</think>\n\nSo it is 4.", True),
    ]
    whole = row_of("masked", stands(LONG))["masked_messages"][-1]
    assert whole["content"] == row_of("sft", LONG)["completion"][0]["content"]
    assert whole["train_detail"] == [{"begin_offset": 0, "end_offset": len(whole["content"]) - 1, "train": True}]


def test_masked_has_no_column_that_a_trainer_reads_without_its_ranges() -> None:
    known = {"text", "messages", "prompt", "completion", "conversations", "input_ids"}
    assert not known & set(VIEWS.get("masked").schema().names)


def test_ranking_has_the_pairs_of_preference_as_single_messages() -> None:
    (pair,) = [row_of("preference", pruned(LONG))]
    (single,) = [row_of("ranking", pruned(LONG))]
    assert single == {
        **{name: value for name, value in pair.items() if name not in ("prompt", "chosen", "rejected")},
        "messages": pair["prompt"],
        "chosen": pair["chosen"][0],
        "rejected": pair["rejected"][0],
    }


def test_pairs_are_of_one_conversation() -> None:
    wrong = VERDICT.model_copy(update={"outcome": Outcome.INCORRECT})
    turns = (Turn(role="assistant", content="5."), Turn(role="user", content="Wrong."))
    group = [
        changed(id="t0", turns=turns),
        changed(id="t1", verdict=wrong),
        changed(id="t2", verdict=wrong, turns=turns, answer_text="6."),
    ]
    made = VIEWS.get("preference").rows(Group(PROBLEM, group))
    assert [(row["id"], row["rejected_id"]) for row in made.rows] == [("t0", "t2")]
    assert [message["content"] for message in made.rows[0]["prompt"]] == ["2 + 2?", "5.", "Wrong."]
    assert {trace_id: error.reason for trace_id, error in made.refused.items()} == {"t1": "no_partner"}


def test_rlvr_has_an_index_of_its_own_for_every_problem() -> None:
    problems = [Problem.make(question=f"{n}?", answer="4") for n in range(50)]
    rows = [VIEWS.get("rlvr").rows(Group(one, [changed(problem=one)])).rows[0] for one in problems]
    indices = {row["extra_info"]["index"] for row in rows}
    assert len(indices) == 50
    assert all(0 <= index < 2**53 for index in indices)


def test_steps_have_no_white_space_at_their_ends() -> None:
    steps = (StepLabel(start=0, end=14, label="correct"), StepLabel(start=14, end=len(STEPS), label="wrong"))
    row = row_of("steps", changed(reasoning=STEPS, steps=steps))
    assert row["completions"] == ["Two and two.", "Let me check: 2 + 2 = 4.\n\nSo the answer is 4."]
    with pytest.raises(ViewError, match="empty_step"):
        row_of("steps", changed(reasoning=STEPS, steps=(StepLabel(start=12, end=14, label="correct"),)))


def test_masked_omits_traces_with_added_text() -> None:
    item = PruneItem.of(LONG)
    result = PruneResult(id="t1", kept=(), reasoning="2 + 2.", added="2 + 2.", answer_text="4")
    found = derive(item, result, pruner="p", granularity=Granularity.STEP, counter=LengthCounter.of(LONG, None))
    parents = (Parent(id="t0", role=ParentRole.PRUNED),)
    rewritten = changed(reasoning="2 + 2.", parents=parents, derivation=found.model_dump_json())
    with pytest.raises(ViewError, match="not_a_selection"):
        row_of("masked", rewritten)


def test_preference_has_both_texts_and_their_lengths() -> None:
    row = row_of("preference", pruned(LONG))
    assert row["chosen"][0]["content"] == "<think>\nTwo and two.\n\nSo the answer is 4.\n</think>\n\nSo it is 4."
    assert row["rejected"][0]["content"] == f"<think>\n{STEPS}\n</think>\n\nIt is 4."
    assert (row["chosen_outcome"], row["rejected_outcome"]) == ("correct", "correct")
    assert row["chosen_length"] < row["rejected_length"] == LONG.completion_tokens
    assert row["length_unit"] == "estimated_tokens"
    with pytest.raises(ViewError, match="never_valid"):
        row_of("preference", stands(LONG))


def test_preference_pairs_correct_traces_with_incorrect_ones() -> None:
    wrong = VERDICT.model_copy(update={"outcome": Outcome.INCORRECT})
    group = [changed(id=f"t{n}", answer_text=f"Answer {n}.", verdict=wrong if n % 2 else VERDICT) for n in range(5)]
    made = VIEWS.get("preference").rows(Group(PROBLEM, group))
    assert [(row["id"], row["rejected_id"], row["kind"]) for row in made.rows] == [
        ("t0", "t1", "verdict"),
        ("t2", "t3", "verdict"),
    ]
    assert made.rows[0]["chosen"][0]["content"] == "<think>\nTwo and two.\n</think>\n\nAnswer 0."
    assert made.rows[0]["rejected"][0]["content"] == "<think>\nTwo and two.\n</think>\n\nAnswer 1."
    assert (made.rows[0]["chosen_outcome"], made.rows[0]["rejected_outcome"]) == ("correct", "incorrect")
    assert {trace_id: error.reason for trace_id, error in made.refused.items()} == {"t4": "no_partner"}
