from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest

from tracefactory.core.errors import UserError
from tracefactory.students.render import Renderer, RenderError

QUESTION = "A box holds 84 apples. Half are sold. How many are left?"
REASONING = "Half of 84 is 42.\n\nWait, 84 − 42 = 42, that fits. 半分は42個。"
ANSWER = "There are \\boxed{42} apples left."

TURNS = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ BODY }}<|im_end|>\n{% endfor %}"
GENERATE = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
KEEPS_FIELD = TURNS.replace(
    "{{ BODY }}",
    "{% if m.reasoning_content %}<think>\n{{ m.reasoning_content.strip() }}\n</think>\n\n{% endif %}{{ m.content }}",
)
STRIPS_THINKING = TURNS.replace("{{ BODY }}", "{{ m.content.split('</think>')[-1] }}")
SPLITS_THINKING = TURNS.replace(
    "{{ BODY }}",
    "{% if '</think>' in m.content %}<think>\n{{ m.content.split('</think>')[0].split('<think>')[-1].strip() }}\n"
    "</think>\n\n{{ m.content.split('</think>')[-1].strip() }}{% else %}{{ m.content }}{% endif %}",
)
NO_SYSTEM = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    + TURNS.replace("BODY", "m.content")
    + GENERATE
)


def with_template(tokenizer: Any, template: str) -> Any:
    other = copy.deepcopy(tokenizer)
    other.chat_template = template
    return other


def test_the_assistant_turn_is_supervised_up_to_its_end_marker(smollm_tokenizer: Any) -> None:
    rendered = Renderer(smollm_tokenizer, "inline").render(QUESTION, REASONING, ANSWER)
    assert rendered.text == f"<think>\n{REASONING}\n</think>\n\n{ANSWER}<|im_end|>"
    supervised = rendered.ids[rendered.first : rendered.stop]
    assert smollm_tokenizer.decode(supervised.tolist()) == rendered.text
    assert len(rendered) == rendered.stop + 1  # the newline that the template writes behind the marker
    assert smollm_tokenizer.decode(rendered.ids[: rendered.first].tolist()).endswith("<|im_start|>assistant\n")


def test_the_ids_are_those_a_trainer_gets_from_the_template(smollm_tokenizer: Any) -> None:
    rendered = Renderer(smollm_tokenizer, "inline").render(QUESTION, REASONING, ANSWER, system="Be brief.")
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": QUESTION},
        {"role": "assistant", "content": f"<think>\n{REASONING}\n</think>\n\n{ANSWER}"},
    ]
    assert rendered.ids.tolist() == smollm_tokenizer.apply_chat_template(messages, tokenize=True)["input_ids"]


@pytest.mark.parametrize("reasoning", [REASONING, "\n  " + REASONING + "\n\n", "42 = 42"])
def test_the_body_starts_where_the_reasoning_does(smollm_tokenizer: Any, reasoning: str) -> None:
    rendered = Renderer(smollm_tokenizer, "inline").render(QUESTION, reasoning, ANSWER)
    assert rendered.text[rendered.body_start :].startswith(reasoning)
    plain = Renderer(smollm_tokenizer, "inline").render(QUESTION, "", ANSWER)
    assert plain.text == ANSWER + "<|im_end|>"
    assert plain.body_start == 0


def test_token_characters_cover_the_supervised_text_in_order(smollm_tokenizer: Any) -> None:
    rendered = Renderer(smollm_tokenizer, "inline").render(QUESTION, REASONING, ANSWER)
    assert rendered.supervised == len(rendered.starts) == len(rendered.ends)
    assert (np.diff(rendered.ends) >= 0).all()
    covered = {c for a, b in zip(rendered.starts, rendered.ends, strict=True) for c in range(a, b)}
    assert {rendered.text[c] for c in set(range(len(rendered.text))) - covered} <= {" ", "\n"}
    assert rendered.ends[-1] == len(rendered.text)


def test_a_token_across_the_border_of_the_turn_is_supervised(smollm_tokenizer: Any) -> None:
    template = (
        "{% for m in messages %}{% if m.role == 'assistant' %} app{% endif %}{{ m.content }}"
        "{% if m.role == 'assistant' %}<|im_end|>{% endif %}{% endfor %}"
        "{% if add_generation_prompt %} app{% endif %}"
    )
    joined = with_template(smollm_tokenizer, template)
    rendered = Renderer(joined, "inline").render("How many", "", "les are left")
    assert joined.decode([int(rendered.ids[rendered.first])]) == " apples"
    assert (rendered.starts[0], rendered.ends[0]) == (0, 3)
    with pytest.raises(RenderError) as info:
        Renderer(joined, "inline").check_mask(rendered)
    assert info.value.reason == "mask_not_exact"


def test_a_template_that_drops_the_reasoning_field_is_refused_before_any_work(smollm_tokenizer: Any) -> None:
    Renderer(smollm_tokenizer, "inline").check()
    with pytest.raises(UserError, match=r"drops or rewrites the reasoning.*reasoning: inline") as info:
        Renderer(smollm_tokenizer, "field").check()
    assert len(info.value.mistakes) == 1


def test_a_template_that_strips_thinking_is_refused(smollm_tokenizer: Any) -> None:
    with pytest.raises(UserError, match="drops or rewrites the reasoning"):
        Renderer(with_template(smollm_tokenizer, STRIPS_THINKING + GENERATE), "inline").check()


def test_a_training_template_makes_the_field_form_work(smollm_tokenizer: Any) -> None:
    renderer = Renderer(with_template(smollm_tokenizer, KEEPS_FIELD + GENERATE), "field")
    renderer.check()
    inline = Renderer(smollm_tokenizer, "inline").render(QUESTION, REASONING, ANSWER)
    field = renderer.render(QUESTION, REASONING, ANSWER)
    assert field.text == inline.text
    assert field.body_start == inline.body_start


def test_a_generation_prompt_that_training_never_shows_is_refused(smollm_tokenizer: Any) -> None:
    forced = GENERATE.replace("assistant\n", "assistant\n<think>\n\n</think>\n\n")
    tokenizer = with_template(smollm_tokenizer, TURNS.replace("BODY", "m.content") + forced)
    with pytest.raises(UserError, match="does not begin with the prompt for generation"):
        Renderer(tokenizer, "inline").check()


def test_an_opening_tag_in_the_generation_prompt_is_prompt(smollm_tokenizer: Any) -> None:
    forced = GENERATE.replace("assistant\n", "assistant\n<think>\n")
    renderer = Renderer(with_template(smollm_tokenizer, TURNS.replace("BODY", "m.content") + forced), "inline")
    rendered = renderer.render(QUESTION, REASONING, ANSWER)
    assert rendered.text == f"{REASONING}\n</think>\n\n{ANSWER}<|im_end|>"
    assert rendered.body_start == 0
    renderer.check()
    with pytest.raises(RenderError) as info:  # it cannot write a short answer as it would sample it
        renderer.render(QUESTION, "", ANSWER)
    assert info.value.reason == "no_reasoning"


def test_a_template_without_a_system_role_raises_user_error(smollm_tokenizer: Any) -> None:
    renderer = Renderer(with_template(smollm_tokenizer, NO_SYSTEM), "inline")
    renderer.check()
    with pytest.raises(UserError, match="no system role"):
        renderer.check(system="Be brief.")


def test_a_trace_that_the_template_cannot_render_has_a_reason(smollm_tokenizer: Any) -> None:
    renderer = Renderer(with_template(smollm_tokenizer, SPLITS_THINKING + GENERATE), "inline")
    renderer.check()
    with pytest.raises(RenderError) as info:
        renderer.render(QUESTION, "First.</think>Second.", ANSWER)
    assert info.value.reason == "think_tag_inside"
