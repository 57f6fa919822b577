"""The render check against real templates' behaviour, through a real transformers tokenizer."""

from __future__ import annotations

from typing import Any

import pytest

from tracefactory.core.rows import Problem, Thinking, Trace
from tracefactory.publish.views import VIEWS, Group
from tracefactory.text.chat_templates import check_rendering

pytest.importorskip("transformers")
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

# Plain ChatML: knows nothing of a reasoning field.
CHATML = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
# Templates of reasoning models: one renders the field, one cuts everything before the closing tag.
FIELD = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.reasoning_content %}<think>\n{{ m.reasoning_content }}\n"
    "</think>\n\n{% endif %}{{ m.content }}<|im_end|>\n{% endfor %}"
)
CUTTING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content.split('</think>')[-1] }}<|im_end|>\n{% endfor %}"
)
NO_ANSWER = "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}"

TRACE = Trace(
    id="t",
    problem=Problem.make(question="What is 2 + 2, is it 4?", answer="4", verifier="math"),
    reasoning="Add two to two.",
    answer_text="4",
    thinking=Thinking.CLOSED,
)


def tokenizer(template: str) -> Any:
    """Return a tokenizer of whitespace words with a chat template."""
    words = Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]", chat_template=template)


def conversation(view: str) -> list[dict[str, Any]]:
    (row,) = VIEWS.get(view).rows(Group(TRACE.problem, [TRACE])).rows
    return list(row["messages"]) if view == "chat" else [*row["prompt"], *row["completion"]]


@pytest.mark.parametrize(
    ("view", "template", "missing"),
    [
        ("sft", CHATML, ()),
        ("chat", CHATML, ("reasoning of message 1",)),
        ("sft", FIELD, ()),
        ("chat", FIELD, ()),
        ("sft", CUTTING, ("reasoning of message 1",)),
        ("chat", CUTTING, ("reasoning of message 1",)),
        ("chat", NO_ANSWER, ("reasoning of message 1", "answer of message 1")),
    ],
)
def test_a_template_that_drops_a_part_is_reported(view: str, template: str, missing: tuple[str, ...]) -> None:
    report = check_rendering(conversation(view), tokenizer(template))
    assert set(report.missing) == set(missing)
    assert report.ok is not bool(missing)


def test_an_answer_that_occurs_in_the_question_is_still_missed() -> None:
    """The question holds "4": only the marker shows that the answer is not rendered."""
    swallowing = "{% for m in messages %}{{ m.content if m.role == 'user' else m.reasoning_content }} 4 {% endfor %}"
    assert check_rendering(conversation("chat"), tokenizer(swallowing)).missing == ("answer of message 1",)


def test_length_and_what_a_trainer_would_cut() -> None:
    report = check_rendering(conversation("sft"), tokenizer(CHATML), max_length=10)
    text = tokenizer(CHATML).apply_chat_template(conversation("sft"), tokenize=False)
    assert report.tokens == len(text.split())
    assert report.over == report.tokens - 10
    assert not report.ok
    assert check_rendering(conversation("sft"), tokenizer(CHATML), max_length=report.tokens).ok
