"""Reasoning and answer are told apart, and no character is lost on the way."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tracefactory.core.rows import Thinking
from tracefactory.text.reasoning import opens_thinking, split_reasoning, with_prefill

TAGS = ["<think>", "</think>", "<thinking>", "</thinking>", "<reasoning>", "</reasoning>", "<thought>", "</thought>"]
TAGS += ["<|begin_of_thought|>", "<|end_of_thought|>", "<THINK>", "</Think>"]
ANY_TAG = re.compile("|".join(re.escape(tag) for tag in TAGS), re.IGNORECASE)


@pytest.mark.parametrize(
    ("content", "field", "opened", "expected"),
    [
        ("7", None, False, ("", "7", Thinking.NONE)),
        ("<think>a</think>7", None, False, ("a", "7", Thinking.CLOSED)),
        ("<think></think>\n7", None, False, ("", "7", Thinking.CLOSED)),
        ("<|begin_of_thought|>a<|end_of_thought|> 7", None, False, ("a", "7", Thinking.CLOSED)),
        ("<Thinking>a</Thinking>7", None, False, ("a", "7", Thinking.CLOSED)),
        ("<reasoning>a</reasoning>7", None, False, ("a", "7", Thinking.CLOSED)),
        # The opening tag is in the prompt, in the chat template (which nobody told us), or in both places.
        ("a\n</think>\n7", None, True, ("a", "7", Thinking.CLOSED)),
        ("a\n</think>\n7", None, False, ("a", "7", Thinking.CLOSED)),
        ("<think>a</think>7", None, True, ("a", "7", Thinking.CLOSED)),
        # Never closed: all of it is reasoning, and there is no answer to verify.
        ("<think>a so it is 7", None, False, ("a so it is 7", "", Thinking.OPEN)),
        ("a so it is 7", None, True, ("a so it is 7", "", Thinking.OPEN)),
        ("", None, True, ("", "", Thinking.OPEN)),
        # Several blocks, nested blocks, and a tag that is only talked about.
        ("<think>a</think>b<think>c</think>d", None, False, ("a\n\nc", "b\n\nd", Thinking.CLOSED)),
        ("<think>a</think>b<think>c", None, False, ("a\n\nc", "b", Thinking.OPEN)),
        ("<think>a<think>b</think>c</think>7", None, False, ("a\n\nb\n\nc", "7", Thinking.CLOSED)),
        ("<think>what does <think> mean?</think>7", None, False, ("what does\n\nmean?", "7", Thinking.CLOSED)),
        # A field of its own.
        ("7", "a", False, ("a", "7", Thinking.CLOSED)),
        ("", "a", False, ("a", "", Thinking.OPEN)),
        ("<think>a</think>7", "a", False, ("a", "7", Thinking.CLOSED)),
        ("use the <think> tag", "a", False, ("a", "use the <think> tag", Thinking.CLOSED)),
        ("<think>a</think>7", " \n", False, ("a", "7", Thinking.CLOSED)),
        ("7", "a", True, ("a", "7", Thinking.CLOSED)),
    ],
)
def test_reasoning_is_told_from_the_answer(content, field, opened, expected):
    assert split_reasoning(content, field, opened_in_prompt=opened) == expected


def _characters(text: str) -> list[str]:
    return sorted(re.sub(r"\s", "", text))


@given(
    parts=st.lists(
        st.one_of(st.sampled_from(TAGS), st.text(alphabet=st.characters(exclude_characters="<>|/"))), max_size=8
    ),
    opened=st.booleans(),
)
def test_no_character_is_lost_besides_the_tags(parts, opened):
    content = "".join(parts)
    reasoning, answer, thinking = split_reasoning(content, None, opened_in_prompt=opened)
    assert _characters(reasoning + answer) == _characters(ANY_TAG.sub("", content))
    if thinking is Thinking.NONE:
        assert reasoning == ""
    if not ANY_TAG.search(content):
        assert thinking is (Thinking.OPEN if opened else Thinking.NONE)


@given(
    content=st.text(alphabet=st.sampled_from("a<>/think |\n"), max_size=60), field=st.text(min_size=1).filter(str.strip)
)
def test_no_character_of_the_content_is_lost_beside_a_field(content, field):
    reasoning, answer, _ = split_reasoning(content, field, opened_in_prompt=False)
    assert reasoning == field.strip()
    assert _characters(answer) in (
        _characters(content),
        _characters(ANY_TAG.sub("", content).replace(field.strip(), "", 1)),
    )


def test_a_prefill_opens_thinking_only_while_it_is_unclosed():
    assert opens_thinking("<think>\nFirst,")
    assert not opens_thinking("<think>done</think> The answer")
    assert not opens_thinking("The answer")


# The words of a prefill are the trace's: servers do not repeat them.

WORDED = "<think>\nThe problem is"


@pytest.mark.parametrize(
    ("prefill", "content", "field", "expected"),
    [
        (
            WORDED,
            " 8 + 9.\nIt is 17.\n</think>\nSo 17.",
            None,
            ("The problem is 8 + 9.\nIt is 17.", "So 17.", "closed"),
        ),
        (WORDED, "<think> 8 + 9.</think>So 17.", None, ("The problem is 8 + 9.", "So 17.", "closed")),
        (WORDED, "So 17.", " 8 + 9.", ("The problem is 8 + 9.", "So 17.", "closed")),
        (WORDED, "So 17.", "The problem is 8 + 9.", ("The problem is 8 + 9.", "So 17.", "closed")),
        (WORDED, " 8 + 9", None, ("The problem is 8 + 9", "", "open")),
        (WORDED, "", None, ("", "", "open")),
        ("Let us see: ", "8 + 9 = 17.", None, ("", "Let us see: 8 + 9 = 17.", "none")),
        ("Let us see: ", "17.", "8 + 9.", ("8 + 9.", "Let us see: 17.", "closed")),
        ("<think>\nEasy.\n</think>\n\nIt is", " 17.", None, ("Easy.", "It is 17.", "closed")),
        ("<think>\nHm, the prob", "lem.</think>17", None, ("Hm, the problem.", "17", "closed")),
        ("<think>\n", "8 + 9.</think>17", None, ("8 + 9.", "17", "closed")),
        ("<think>\n\n</think>\n\n", "17", None, ("", "17", "none")),
        ("", "<think>8</think>17", None, ("8", "17", "closed")),
    ],
)
def test_a_trace_begins_with_the_words_of_its_prefill(prefill, content, field, expected):
    written = with_prefill(content, field, prefill)
    reasoning, answer, thinking = split_reasoning(*written, opened_in_prompt=opens_thinking(prefill))
    assert (reasoning, answer, thinking.value) == expected
