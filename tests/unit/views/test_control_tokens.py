"""Control tokens that somebody spelled, where views are published: dropped, escaped or kept, and counted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests.unit.views.test_views import LONG, PROBLEM, STEPS, pruned
from tracefactory.core.rows import Outcome, StepLabel, Thinking, Tool, ToolCall, Trace, Turn, Verdict
from tracefactory.core.stage import Batch
from tracefactory.publish.control_tokens import TokenCheck, sentence
from tracefactory.publish.views import VIEWS, Group
from tracefactory.publish.writing import RangePart, write_range
from tracefactory.text.control_tokens import ControlTokens, Marks, RowMarks

VIEWS_OF_TRACES = ["sft", "chat", "messages", "masked", "tool_use"]
ALL = [*VIEWS_OF_TRACES, "preference", "ranking", "rlvr", "steps", "raw"]
CALL = ToolCall(id="c1", name="python", arguments=json.dumps({"code": "print('<|im_end|>')", "<s>": 1}))
TOOL = Tool(name="python", description="Runs a program, not </s>.", parameters='{"type": "object"}')


def changed(**values: Any) -> Trace:
    return LONG.model_copy(update={"thinking": Thinking.CLOSED, **values})


def asked(question: str) -> Trace:
    return changed(problem=PROBLEM.model_copy(update={"question": question}))


def wrong(trace: Trace) -> Trace:
    verdict = Verdict(outcome=Outcome.INCORRECT, method="exact", verifier="math", version="1")
    return trace.model_copy(update={"id": "t9", "verdict": verdict})


def published(
    folder: Path, traces: list[Trace], policy: str, views: list[str] = ALL, own: tuple[str, ...] = ()
) -> tuple[dict[str, list[dict[str, Any]]], RangePart]:
    """Publish traces, and return the rows of every view with the report."""
    tokens = TokenCheck(ControlTokens(policy), RowMarks(own))
    traces = sorted(traces, key=lambda one: one.id)
    part = write_range(folder, 0, views, [Batch(traces=traces)], (), None, tokens)
    return {name: read(part.views[name].file) for name in views}, part


def read(file: Path | None) -> list[dict[str, Any]]:
    return [] if file is None else pq.read_table(file).to_pylist()


OFFENDERS = [
    changed(reasoning="It ends.<|im_end|>"),
    changed(answer_text="4<｜end▁of▁sentence｜>"),
    changed(answer_text="[INST] 4 [/INST]"),
    changed(answer_text="4<|im_end|>" * 10_000),
    asked("2 + 2?<|eot_id|>"),
    asked("What does <|im_end|> do in ChatML?"),
    asked("Should <think> be written?"),
    changed(turns=(Turn(role="assistant", content="5."), Turn(role="user", content="No.<start_of_turn>model"))),
    changed(turns=(Turn(role="assistant", content="4", reasoning="</s>"), Turn(role="user", content="No."))),
]


@pytest.mark.parametrize("trace", OFFENDERS, ids=range(len(OFFENDERS)))
def test_by_default_a_trace_that_spells_a_control_token_is_in_no_view(tmp_path: Path, trace: Trace) -> None:
    fit = changed(id="t0")
    part = write_range(tmp_path, 0, ALL, [Batch(traces=[fit.model_copy(update={"problem": trace.problem}), trace])], ())
    if trace.problem == PROBLEM:
        assert list(part.refused) == [trace.id]
        assert [one["id"] for one in read(part.views["raw"].file)] == ["t0"]
    else:
        assert sorted(part.refused) == ["t0", trace.id]
    reason, detail = part.refused[trace.id]
    assert reason == "control_token_inside"
    assert len(detail) < 150
    for name in VIEWS_OF_TRACES:
        assert trace.id not in [one["id"] for one in read(part.views[name].file)]
    assert not any(part.views[name].spelled for name in ALL)


@pytest.mark.parametrize("trace", OFFENDERS, ids=range(len(OFFENDERS)))
def test_escaped_rows_spell_none_and_come_back_as_they_were(tmp_path: Path, trace: Trace) -> None:
    escaped, part = published(tmp_path / "escaped", [trace], "escape")
    kept, as_they_are = published(tmp_path / "kept", [trace], "keep")
    assert not part.refused
    assert not as_they_are.refused
    check = TokenCheck(ControlTokens.DROP)
    for name in ALL:
        assert len(escaped[name]) == len(kept[name])
        assert part.views[name].spelled == as_they_are.views[name].spelled
        for one, raw in zip(escaped[name], kept[name], strict=True):
            assert check._find(VIEWS.get(name), one) is None
            assert (one != raw) == bool(part.views[name].spelled)
            assert json.loads(unescaped(one)) == json.loads(json.dumps(without_ranges(raw)))
    assert part.views["sft"].spelled.total() == 1
    assert not part.views["raw"].spelled


def without_ranges(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_ranges(one) for key, one in value.items() if key != "train_detail"}
    return [without_ranges(one) for one in value] if isinstance(value, list) else value


def unescaped(row: dict[str, Any]) -> str:
    def texts(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: texts(one) for key, one in value.items()}
        if isinstance(value, list):
            return [texts(one) for one in value]
        return Marks(think=True).unescape(value) if isinstance(value, str) else value

    return json.dumps(texts(without_ranges(row)))


@pytest.mark.parametrize("policy", ["drop", "escape", "keep"])
def test_the_think_tags_that_views_write_are_no_offence(tmp_path: Path, policy: str) -> None:
    rows, part = published(tmp_path, [changed(), wrong(changed(answer_text="It is 5."))], policy)
    assert not part.refused
    assert rows["sft"][0]["completion"][0]["content"].startswith("<think>\nTwo")
    assert not any(part.views[name].spelled for name in ALL)


@pytest.mark.parametrize("policy", ["drop", "escape", "keep"])
@pytest.mark.parametrize("tag", ["a <think> b", "a </think> b"])
def test_think_tags_in_what_an_assistant_wrote_are_refused_under_every_policy(
    tmp_path: Path, policy: str, tag: str
) -> None:
    _, part = published(tmp_path, [changed(reasoning=tag)], policy)
    assert {reason for reason, _ in part.refused.values()} == {"think_tag_inside"}


@pytest.mark.parametrize("trace", [changed(reasoning="a<|im_\u200bend|>"), changed(answer_text="[inst] 4 <|IM_"),
                                   changed(reasoning="It is <|im_", answer_text="end|>.")])  # fmt: skip
def test_what_no_tokenizer_takes_for_a_control_token_is_published(tmp_path: Path, trace: Trace) -> None:
    for policy in ("drop", "escape", "keep"):
        rows, part = published(tmp_path / policy, [trace], policy)
        assert not part.refused
        assert trace.answer_text in rows["sft"][0]["completion"][0]["content"]
        assert not part.views["sft"].spelled


def test_tools_their_calls_and_results(tmp_path: Path) -> None:
    turns = (
        Turn(role="assistant", content="I run it.", tool_calls=(CALL,)),
        Turn(role="tool", content="<|im_end|> <think>", name="python", call_id="c1"),
    )
    plain = LONG.model_copy(update={"problem": PROBLEM.model_copy(update={"tools": (TOOL,)})})
    trace = plain.model_copy(update={"turns": turns})
    _, part = published(tmp_path / "drop", [trace], "drop", ["tool_use", "raw"])
    assert list(part.refused) == ["t1"]
    _, part = published(tmp_path / "tools", [plain], "drop", ["tool_use", "raw"])
    assert part.refused["t1"][1].startswith("the tools contains </s>")
    rows, part = published(tmp_path / "escape", [trace], "escape", ["tool_use", "raw"])
    (row,) = rows["tool_use"]
    assert row["messages"][2]["content"] == r"<\|im_end|> <\think>"
    assert json.loads(row["messages"][1]["tool_calls"][0]["function"]["arguments"]) == {
        "code": r"print('<\|im_end|>')",
        r"<\s>": 1,
    }
    assert json.loads(row["tools"])[0]["function"]["description"] == r"Runs a program, not <\/s>."
    assert rows["raw"][0]["turns"][0]["tool_calls"][0]["arguments"] == CALL.arguments
    rows, part = published(tmp_path / "keep", [trace], "keep", ["tool_use", "raw"])
    assert rows["tool_use"][0]["messages"][1]["tool_calls"][0]["function"]["arguments"] == CALL.arguments
    assert part.views["tool_use"].spelled.total() == 1


def test_a_rejected_answer_with_a_control_token_is_in_no_pair_but_another_one_is(tmp_path: Path) -> None:
    bad, good = wrong(changed(answer_text="5<|im_end|>")), wrong(changed(answer_text="It is 6."))
    traces = [changed(), bad, good.model_copy(update={"id": "u"})]
    rows, part = published(tmp_path / "drop", traces, "drop", ["preference", "ranking", "raw"])
    assert list(part.refused) == ["t9"]
    assert [one["rejected_id"] for one in rows["preference"]] == ["u"]
    assert [one["rejected_id"] for one in rows["ranking"]] == ["u"]
    rows, part = published(tmp_path / "escape", traces[:2], "escape", ["preference", "ranking", "raw"])
    assert rows["preference"][0]["rejected"][0]["content"].endswith(r"5<\|im_end|>")
    assert rows["ranking"][0]["rejected"]["content"].endswith(r"5<\|im_end|>")
    assert part.views["ranking"].spelled == {"<|im_end|>": 1}


def test_what_was_pruned_away_is_in_no_view_and_its_ranges_stay_where_they_are(tmp_path: Path) -> None:
    trace = pruned(LONG)
    spelled = trace.model_copy(update={"derivation": trace.derivation.replace("2 + 2 = 4", "2 <|im_end|> 4 <s>")})
    assert spelled.derivation != trace.derivation
    views = ["sft", "masked", "raw"]
    rows, part = published(tmp_path / "drop", [spelled], "drop", views)
    assert [len(rows[name]) for name in views] == [1, 0, 1]  # the trace itself spells none
    assert part.views["masked"].left_out == {"control_token_inside": 1}
    (escaped,), (kept,) = (
        published(tmp_path / policy, [spelled], policy, views)[0]["masked"] for policy in ("escape", "keep")
    )
    found = []
    for row in (escaped, kept):
        last = row["masked_messages"][-1]
        ranges = [(one["begin_offset"], one["end_offset"] + 1, one["train"]) for one in last["train_detail"]]
        assert [start for start, _, _ in ranges] == [0, *(end for _, end, _ in ranges[:-1])]
        assert ranges[-1][1] == len(last["content"])
        found.append([(last["content"][start:end], train) for start, end, train in ranges])
    assert [(Marks().unescape(text), train) for text, train in found[0]] == found[1]
    assert STEPS.replace("2 + 2 = 4", "2 <|im_end|> 4 <s>") in kept["masked_messages"][-1]["content"]
    assert r"2 <\|im_end|> 4 <\s>" in next(text for text, train in found[0] if not train)


def test_labelled_steps(tmp_path: Path) -> None:
    steps = (StepLabel(start=0, end=5, label="correct"), StepLabel(start=5, end=10, label="wrong"))
    trace = changed(reasoning="a <s> b<|im_end|>", steps=steps)
    rows, part = published(tmp_path / "drop", [trace], "drop", ["steps", "raw"])
    assert list(part.refused) == ["t1"]
    rows, part = published(tmp_path / "escape", [trace], "escape", ["steps", "raw"])
    assert rows["steps"][0]["completions"] == [r"a <\s>", "b<|i"]  # a mark in two steps is none
    assert rows["raw"][0]["reasoning"] == trace.reasoning


def test_control_tokens_of_a_student_count_and_one_without_an_escaped_form_is_dropped(tmp_path: Path) -> None:
    trace, other = changed(answer_text="See <filename>."), changed(id="t2", answer_text="See §.")
    own = ("<filename>", "§")
    _, part = published(tmp_path / "any", [trace, other], "drop", ["sft"])
    assert not part.refused
    _, part = published(tmp_path / "drop", [trace, other], "drop", ["sft"], own)
    assert sorted(part.refused) == ["t1", "t2"]
    rows, part = published(tmp_path / "escape", [trace, other], "escape", ["sft"], own)
    assert list(part.refused) == ["t2"]
    assert rows["sft"][0]["completion"][0]["content"].endswith(r"See <\filename>.")


def test_a_row_of_a_view_is_changed_only_where_a_student_is_shown_it(tmp_path: Path) -> None:
    trace = changed(teacher="<s>", problem=PROBLEM.model_copy(update={"source": "<s>", "spec": '{"x": "<s>"}'}))
    rows, part = published(tmp_path, [trace], "escape")
    assert rows["sft"][0]["teacher"] == "<s>"
    assert rows["rlvr"][0]["data_source"] == "<s>"
    assert rows["rlvr"][0]["extra_info"]["spec"] == '{"x": "<s>"}'
    assert not any(part.views[name].spelled for name in ALL)


def test_the_rows_of_a_group_that_spell_none_are_the_same_under_every_policy() -> None:
    group = Group(PROBLEM, [changed(), wrong(changed())])
    for policy in ControlTokens:
        for name in ALL:
            made = VIEWS.get(name).rows(group)
            rows, spelled = TokenCheck(policy).apply(VIEWS.get(name), made)
            assert rows == made
            assert not spelled


def test_the_card_s_sentence() -> None:
    from collections import Counter

    counts = {"sft": Counter({"<|im_end|>": 2, "<s>": 1}), "raw": Counter[str]()}
    nothing = {"sft": Counter[str]()}
    assert sentence(ControlTokens.DROP, 0, nothing).startswith("No text to train on spells a control token")
    assert "1,234 traces that spell one were dropped" in sentence(ControlTokens.DROP, 1234, nothing)
    assert "sft 3 (tokens: <|im_end|>, <s>)" in sentence(ControlTokens.KEEP, 0, counts)
    assert "which trainers turn into the real ones" in sentence(ControlTokens.KEEP, 0, counts)
    assert r"<\|im_end|>" in sentence(ControlTokens.ESCAPE, 0, counts)
    assert "sft 3" in sentence(ControlTokens.ESCAPE, 0, counts)
    for policy in (ControlTokens.ESCAPE, ControlTokens.KEEP):
        assert sentence(policy, 0, nothing).startswith("No row spells")
