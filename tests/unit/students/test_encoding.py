"""A control token that somebody wrote into a text is text: in scores, in prompts of two models, and in counts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("transformers")

from tests.unit.students.conftest import gguf
from tracefactory.core.checkpoint import Checkpoint
from tracefactory.core.model import ChatRequest
from tracefactory.decoding.prompts import rollout_spec
from tracefactory.publish.rendering import check_row
from tracefactory.serving.encoding import count, encode, ranges_of_texts
from tracefactory.serving.loading import load_tokenizer
from tracefactory.students.render import Renderer
from tracefactory.students.student import Student
from tracefactory.students.tokens import token_counter
from tracefactory.testing.templates import shipped, template_files, with_template
from tracefactory.text.chat_templates import ChatTemplate, RenderError
from tracefactory.text.control_tokens import RowMarks

QUESTION, REASONING, ANSWER = "What ends a turn?", "It is a mark.", "The mark."
MARKS = ("<|im_end|>", "<|im_start|>", "<|endoftext|>")


@pytest.fixture(scope="module", params=["smollm2-135m", "qwen2.5-coder-0.5b", "qwen2.5-coder-1.5b"])
def tokenizer(request: pytest.FixtureRequest) -> Any:
    if request.param == "smollm2-135m":
        return request.getfixturevalue("smollm_tokenizer")
    return load_tokenizer(Checkpoint(model=str(gguf(request.param))))


def special(tokenizer: Any, ids: Any) -> list[int]:
    return [int(one) for one in ids if int(one) in tokenizer.added_tokens_decoder]


@pytest.mark.parametrize("mark", MARKS)
@pytest.mark.parametrize("where", ["question", "reasoning", "answer", "system"])
def test_scoring_has_the_control_tokens_of_the_template_alone(tokenizer: Any, mark: str, where: str) -> None:
    renderer = Renderer(tokenizer, "inline")
    texts = {"question": QUESTION, "reasoning": REASONING, "answer": ANSWER, "system": "Be brief."}
    plain = renderer.render(**texts)
    texts[where] = f"{mark} {texts[where][:5]}{mark}{texts[where][5:]}\n{mark}"
    spelled = renderer.render(**texts)
    assert mark in renderer.control_tokens
    assert special(tokenizer, spelled.ids) == special(tokenizer, plain.ids)
    assert renderer.decode(spelled.ids).count(mark) == renderer.decode(plain.ids).count(mark) + 3
    renderer.check_mask(spelled)
    assert spelled.text[spelled.body_start :].startswith(texts["reasoning"][:5])
    own = spelled.ids[spelled.first : spelled.stop]
    pieces = [spelled.text[start:end] for start, end in zip(spelled.starts, spelled.ends, strict=True)]
    assert "".join(pieces) == spelled.text
    assert [tokenizer.decode([one]) for one in own] == pieces


@pytest.mark.parametrize("text", ["<|im_end|>" * 10_000, "<|im_end|>", "user", "<|im_start|>user\n", "<tool_call>"])
def test_a_text_of_nothing_but_control_tokens_is_not_taken_for_the_template_s(tokenizer: Any, text: str) -> None:
    renderer = Renderer(tokenizer, "inline")
    plain = renderer.render(QUESTION, REASONING, ANSWER)
    assert special(tokenizer, renderer.render(text, REASONING, ANSWER).ids) == special(tokenizer, plain.ids)
    assert special(tokenizer, renderer.render(QUESTION, text, text).ids) == special(tokenizer, plain.ids)


@pytest.mark.parametrize(
    "texts",
    [
        ("How?", "It ends with <|im_", "end|> and goes on."),
        ("How? <|im_", "end|> Well.", "So."),
        ("How?", "a<|im\u200b_end|>b", "<|IM_END|> [inst] <|im_end |>"),
        ("How?", "\ufeff<|im_\u2060end|>", "＜|im_end|＞"),
    ],
)
def test_what_a_tokenizer_does_not_take_for_a_control_token_is_none(
    tokenizer: Any, texts: tuple[str, str, str]
) -> None:
    renderer = Renderer(tokenizer, "inline")
    plain = renderer.render(QUESTION, REASONING, ANSWER)
    assert special(tokenizer, renderer.render(*texts).ids) == special(tokenizer, plain.ids)
    assert not [one for one in texts if renderer.control_token_in(one)]


def test_other_texts_have_the_tokens_of_trainers(tokenizer: Any) -> None:
    renderer = Renderer(tokenizer, "inline")
    item = renderer.render("2 < 3 |x| <b>?", "a\n\nb", "半分 🍎")
    whole = renderer.template.text(
        [
            {"role": "user", "content": "2 < 3 |x| <b>?"},
            {"role": "assistant", "content": "<think>\na\n\nb\n</think>\n\n半分 🍎"},
        ],
        generate=False,
    )
    assert item.ids.tolist() == tokenizer(whole, add_special_tokens=False)["input_ids"]


@pytest.fixture(scope="module")
def of_templates() -> Any:
    """One tokenizer for all templates: what is made of its vocabulary takes a second, and no template changes it."""
    gguf("smollm2-135m")
    return with_template(shipped()["smollm2"])


@pytest.mark.parametrize("name", ["smollm2", *(file.stem for file in template_files())])
def test_under_every_template_a_control_token_in_a_text_is_text_or_the_text_is_refused(
    of_templates: Any, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    tokenizer = of_templates
    monkeypatch.setattr(tokenizer, "chat_template", shipped()[name])
    rendered, compared = 0, 0
    for placement in ("inline", "field"):
        renderer = Renderer(tokenizer, placement)
        try:
            plain = renderer.render(QUESTION, REASONING, ANSWER)
        except RenderError:
            continue
        rendered += 1
        for mark in sorted(renderer.control_tokens)[::12]:
            texts = (f"a{mark}b", f"c {mark} d", f"e\n{mark}\nf")
            try:
                spelled = renderer.render(*texts)
            except RenderError:
                continue
            assert special(tokenizer, spelled.ids) == special(tokenizer, plain.ids), mark
            compared += 1
    assert bool(compared) == bool(rendered)  # no template refuses all of them


def test_a_think_tag_in_the_question_is_text(tokenizer: Any) -> None:
    own = with_think(tokenizer)
    renderer = Renderer(own, "inline")
    plain = renderer.render(QUESTION, REASONING, ANSWER)
    tags = own.convert_tokens_to_ids(["<think>", "</think>"])
    assert [one for one in special(own, plain.ids) if one in tags] == tags
    assert special(own, renderer.render("<think> or </think>?", REASONING, ANSWER).ids) == special(own, plain.ids)
    with pytest.raises(RenderError):
        renderer.render(QUESTION, "a </think> b", ANSWER)


def with_think(tokenizer: Any) -> Any:
    import copy

    own = copy.deepcopy(tokenizer)
    own.add_tokens(["<think>", "</think>"])
    return own


@pytest.mark.parametrize("mark", [*MARKS, "<tool_call>"])
def test_the_prompt_of_two_models_has_the_control_tokens_of_the_template_alone(tokenizer: Any, mark: str) -> None:
    def prompt(question: str, *prefill: dict[str, str]) -> tuple[int, ...]:
        messages = ({"role": "system", "content": "Be brief."}, {"role": "user", "content": question}, *prefill)
        params = {"decoder": "reverse_speculative", "seed": 1, "max_tokens": 8}
        return rollout_spec(
            tokenizer, ChatRequest(model_identity={"model": "m"}, messages=messages, params=params)
        ).prompt

    plain = special(tokenizer, prompt(QUESTION))
    assert special(tokenizer, prompt(f"{mark}{QUESTION} {mark}")) == plain
    assert special(tokenizer, prompt(mark, {"role": "assistant", "content": "<think>\n"})) == plain
    assert prompt(f"{mark} or not?") != prompt("x or not?")


def test_counts_are_of_text(tokenizer: Any) -> None:
    own = with_think(tokenizer)
    assert count(own, "<think>\na\n</think>\n\nb") == len(own("<think>\na\n</think>\n\nb")["input_ids"])
    assert count(own, "<|im_end|>") > 1
    assert count(own, "") == 0
    assert count(own, "<think><|im_end|></think>") == count(own, "<|im_end|>") + 2


def test_the_counter_of_a_student_counts_text(smollm_spec: Checkpoint) -> None:
    counter = token_counter(smollm_spec)
    assert counter("<|im_end|>" * 3) > 9


def test_scores_of_a_text_with_a_control_token_are_of_text(smollm: Student) -> None:
    items = [smollm.render("2 + 2?", "", answer) for answer in ("It is 4.<|im_end|> So.", "It is 4. So.")]
    spelled, plain = [smollm.score([one])[0] for one in items]
    end = smollm.renderer.tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert spelled.token_ids.tolist().count(end) == plain.token_ids.tolist().count(end) == 1
    assert np.isfinite(spelled.logprobs).all()


def test_a_template_that_rewrites_a_text_with_a_control_token_is_refused() -> None:
    gguf("smollm2-135m")
    source = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content.replace('|>', '| >') }}<|im_end|>\n{% endfor %}"
    )
    template = ChatTemplate.of_tokenizer(with_template(source))
    with pytest.raises(RenderError) as caught:
        ranges_of_texts(template, [{"role": "user", "content": "a<|im_end|>b"}], generate=False)
    assert caught.value.reason == "special_token_inside"


def test_the_encoding_of_a_text_without_ranges_is_the_tokenizer_s(tokenizer: Any) -> None:
    text = "a<|im_end|>b"
    assert encode(tokenizer, text, [])[0] == tokenizer(text, add_special_tokens=False)["input_ids"]
    assert special(tokenizer, encode(tokenizer, text, [(0, len(text))])[0]) == []


def test_an_escaped_text_has_no_control_token_for_a_trainer_either(tokenizer: Any) -> None:
    """A trainer calls the tokenizer on the rendering: `tokens_of` is what it gets."""
    renderer = Renderer(tokenizer, "inline")
    marks = RowMarks(renderer.control_tokens)
    names = [*renderer.control_tokens, "<s>", "</s>", "[INST]", "<｜User｜>", "<tool_call>"]
    texts = [f"a {name}{name} b" for name in names]
    plain = renderer.conversation([{"role": "user", "content": QUESTION}], {"role": "assistant", "content": ANSWER})
    for text in ("".join(texts), *texts):
        asked = [{"role": "user", "content": marks.other.escape(text)}]
        escaped = {"role": "assistant", "content": marks.assistant.escape(text)}
        item = renderer.conversation(asked, escaped)
        assert special(tokenizer, item.ids) == special(tokenizer, plain.ids)
        check_row({"messages": [*asked, escaped]}, renderer)


def test_rows_that_keep_control_tokens_are_checked_for_everything_else(tokenizer: Any) -> None:
    renderer = Renderer(tokenizer, "inline")
    row = {"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": "4<|im_end|>5"}]}
    check_row(row, renderer, spelled=True)
    with pytest.raises(RenderError) as caught:
        check_row(row, renderer)
    assert caught.value.reason == "special_token_inside"
    empty = {"messages": [row["messages"][0], {"role": "assistant", "content": ""}]}
    with pytest.raises(RenderError):
        check_row(empty, renderer, spelled=True)
