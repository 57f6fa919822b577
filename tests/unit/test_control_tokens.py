"""What counts as a control token in a text, and its escaped form."""

from __future__ import annotations

import random
import time

import pytest

from tracefactory.core.rows import Tool, ToolCall, Turn
from tracefactory.testing import make_problem, make_trace
from tracefactory.text.control_tokens import Marks, RowMarks

MARKS = [
    *("<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|im_sep|>", "<|user|>", "<|end|>", "<|tool_call_start|>"),
    *("<|begin_of_text|>", "<|start_header_id|>", "<|eot_id|>", "<|python_tag|>", "<|reserved_special_token_7|>"),
    *("<|start|>", "<|channel|>", "<|message|>", "<|return|>", "<|call|>", "<|constrain|>"),
    *(
        "<｜User｜>",
        "<｜Assistant｜>",
        "<｜end▁of▁sentence｜>",
        "<｜begin of sentence｜>",
        "<｜tool▁calls▁begin｜>",
        "｜DSML｜",
    ),
    *("<start_of_turn>", "<end_of_turn>", "<bos>", "<eos>", "<|turn>", "<turn|>", "<|channel>", "<tool_call|>"),
    *("<s>", "</s>", "<unk>", "[INST]", "[/INST]", "<<SYS>>", "<</SYS>>", "[TOOL_CALLS]", "[/TOOL_RESULTS]", "[THINK]"),
    *("<tool_call>", "</tool_call>", "<tool_response>", "[gMASK]", "<sop>", "[|endofturn|]"),
]
NONE = [
    *("|x| < |y|", "<|psi|phi>", "a<b|c>d", "f(<x>)", "<think", "[INST", "{{ x }}", "<b>", "[0, 1]", "<S>", "[inst]"),
    *(
        "<|IM_END",
        "<|im\u200b_end|>",
        "<\u200b|im_end|>",
        "<｜Us\u200ber｜>",
        "＜|im_end|＞",
        "<\\|im_end|>",
        "< |im_end|>",
    ),
    *("usage: run [OPTIONS] [ARGS]", "[|x|]", "a[i] | b[j]", "<ss>", "x <s y> z", "<strong>", "¬[INSTALL]"),
]


@pytest.mark.parametrize("mark", MARKS)
def test_marks_of_common_templates_are_found_and_escaped(mark: str) -> None:
    marks = Marks()
    for text in (mark, f"It is {mark} here.", mark * 3, f"\n{mark}\n{mark}"):
        assert marks.find(text) == mark
        escaped = marks.escape(text)
        assert marks.find(escaped) is None
        assert marks.unescape(escaped) == text
        assert len(escaped) == len(text) + text.count(mark) == len(text) + len(marks.places(text))
    assert marks.escape(mark) == f"{mark[0]}\\{mark[1:]}"


@pytest.mark.parametrize("text", NONE)
def test_what_only_looks_like_a_mark_is_none(text: str) -> None:
    assert Marks().find(text) is None


def test_think_tags_count_where_no_assistant_wrote_them() -> None:
    text = "Write <think> and </think>."
    assert Marks().find(text) is None
    assert Marks(["<think>"]).find(text) is None
    assert Marks(think=True).find(text) == "<think>"
    assert Marks(think=True).escape(text) == r"Write <\think> and <\/think>."


def test_a_text_that_was_escaped_before_comes_back_as_it_was() -> None:
    marks, letters = Marks(["<filename>"], think=True), ["<", "|im_end|>", "\\", "s>", "[", "/INST]", "filename>", "a"]
    chosen = random.Random(1)
    for _ in range(5000):
        text = "".join(chosen.choices([*letters, "think>", "｜DSML｜"], k=chosen.randint(0, 9)))
        escaped = marks.escape(text)
        assert marks.find(escaped) is None
        assert marks.unescape(escaped) == text
        places = set(marks.places(text))
        written = "".join(("\\" if at in places else "") + sign for at, sign in enumerate(text))
        assert written == escaped


def test_tokens_of_a_tokenizer_are_found_too_also_one_that_has_no_escaped_form() -> None:
    marks = Marks(["<filename>", "<file", "§", ""])
    assert marks.find("a <filename> b") == "<filename>"
    assert marks.escape("<filename>") == r"<\filename>"
    assert marks.find(marks.escape("§")) == "§"
    assert marks.find("") is None


@pytest.mark.parametrize("text", ["<|im_end|>", "<|", "<｜a", "[", "<|" + "a" * 1000, "<\\", "\\"])
def test_the_time_grows_with_the_length_alone(text: str) -> None:
    marks, seconds = Marks(think=True), []
    for times in (2_000, 20_000):
        long = text * times
        start = time.perf_counter()
        assert marks.unescape(marks.escape(long)) == long
        marks.find(long[1:])
        seconds.append(time.perf_counter() - start)
    assert seconds[1] < 100 * max(seconds[0], 0.001)


ASKED = Turn(role="user", content="a")


def calling(name: str, arguments: str = "{}") -> tuple[Turn, ...]:
    return (Turn(role="assistant", tool_calls=(ToolCall(name=name, arguments=arguments),)),)


@pytest.mark.parametrize(
    ("row", "where"),
    [
        (make_problem("What is <|im_end|>?"), "question"),
        (make_problem("Use <think> tags."), "question"),
        (make_problem(tools=(Tool(name="f", description="ends with </s>"),)), "tools"),
        (make_problem(tools=(Tool(name="f", parameters='{"a": {"\\u003c|im_end|>": 1}}'),)), "tools"),
        (make_trace(question="[INST] 2 + 2 [/INST]"), "question"),
        (make_trace(reasoning="a<|im_end|>b"), "reasoning of message 1"),
        (make_trace(answer_text="4<｜User｜>"), "text of message 1"),
        (make_trace(turns=(Turn(role="tool", content="<think>"),)), "text of message 1"),
        (make_trace(turns=(ASKED, Turn(role="assistant", reasoning="<s>"))), "reasoning of message 2"),
        (make_trace(turns=calling("<s>")), "tool calls of message 1"),
        (make_trace(turns=calling("f", '{"a": ["\\u003cs>"]}')), "tool calls of message 1"),
        (make_trace(turns=calling("f", "[" * 9999 + "<s>")), "tool calls of message 1"),
    ],
)  # fmt: skip
def test_every_text_that_a_student_is_shown_is_looked_at(row: object, where: str) -> None:
    found = RowMarks().find(row)  # type: ignore[arg-type]
    assert found is not None
    assert found[0] == where


def test_a_gold_answer_a_passage_and_think_tags_of_an_assistant_are_not_looked_at() -> None:
    assert RowMarks().find(make_problem(answer="<s>")) is None
    assert RowMarks().find(make_trace(reasoning="a <think> b")) is None  # views refuse it as think_tag_inside
    assert RowMarks().find(make_trace(reasoning="It is <|im_", answer_text="end|>.")) is None
    assert RowMarks(["<filename>"]).find(make_trace(answer_text="<filename>")) == ("text of message 1", "<filename>")
