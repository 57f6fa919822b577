"""Every chat template that TRL ships, with a real tokenizer: what it can be used for, and what is refused and why."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("trl")
pytest.importorskip("transformers")

from tests.unit.students.conftest import gguf
from tracefactory.core.errors import UserError
from tracefactory.core.model import ChatRequest
from tracefactory.core.rows import Thinking
from tracefactory.decoding.decoder import Role
from tracefactory.decoding.prompts import rollout_spec
from tracefactory.decoding.provenance import Decoded
from tracefactory.decoding.rollout import Rollout
from tracefactory.decoding.vocabulary import compare
from tracefactory.publish.rendering import NOT_RENDERED, check_row
from tracefactory.stages._sampling import reply_fields
from tracefactory.students.render import Renderer, RenderError
from tracefactory.testing.templates import document, shipped, table, with_template
from tracefactory.text.chat_templates import ChatTemplate
from tracefactory.text.prompt_rendering import Continues, continued, prompt_faults
from tracefactory.text.turns import rendered_turn

QUESTION = "A box holds 84 apples. Half are sold. How many are left?"
REASONING = "Half of 84 is 42.\n\nSo 84 - 42 = 42."
ANSWER = "There are \\boxed{42} apples left."
USER = {"role": "user", "content": QUESTION}
INLINE = {"role": "assistant", "content": f"<think>\n{REASONING}\n</think>\n\n{ANSWER}"}

LOST, NONE, SHUT, TWICE = "reasoning_not_rendered", "no_reasoning", "thinking_closed_in_prompt", "think_tags_doubled"
EARLIER, HEADER = "example_reasoning_dropped", "prefill_not_in_turn"
# measure inline, measure field, no reasoning, system, examples, prefill, then chat, masked, the other views
EXPECTED = {
    "smollm2 qwen2_5 qwen2_5_training qwen3_instruct_2507 qwen3_instruct_2507_training qwen3_vl qwen2_5_vl llama3 "
    "llama3_1 llama3_2 llama3_training gemma3 gemma3_training gemma4 gemma4_v2 cohere cohere2 lfm2 lfm2_v2": (
        "ok", LOST, "ok", "ok", "ok", "ok", LOST, "ok", "ok",
    ),
    "gemma gemma_training": ("ok", LOST, "ok", "no_system_role", "ok", "ok", LOST, "ok", "ok"),
    "gemma4_v5 diffusion_gemma qwen3_training qwen3_5_think_training qwen3_6_training": ("ok",) * 9,
    "qwen3 qwen3_5_think qwen3_6 lfm2_2_5": ("ok", "ok", "ok", "ok", EARLIER, "ok", "ok", "ok", "ok"),
    "glm4moe_training": ("ok", "ok", "ok", "ok", EARLIER, "ok", "ok", "ranges_moved", "ok"),
    "glm4moe": ("no_end_of_turn",) * 3 + ("ok", EARLIER, "ok") + ("no_end_of_turn",) * 3,
    "deepseek_r1_distill deepseekv3 deepseekv3_training": (LOST, LOST, NONE, "ok", EARLIER, "ok", LOST, LOST, LOST),
    "deepseek_r1_distill_training": ("ok", LOST, NONE, "ok", "ok", "ok", LOST, "ok", "ok"),
    "nemotron_3_nano nemotron_3_super nemotron_3_ultra nemotron_3_5_lightning": (
        "ok", "ok", NONE, "ok", EARLIER, "ok", "ok", "ok", "ok",
    ),
    "gptoss muse_glimmer": ("ok", "ok", "ok", "ok", "ok", HEADER, "ok", "ok", "ok"),
    "phi3 phi3_training phi3_5": (
        "end_doubled", LOST, "end_doubled", "ok", "ok", "ok", LOST, "end_doubled", "end_doubled",
    ),
    "qwen3_5_nothink": (SHUT, SHUT, "ok", "ok", EARLIER, SHUT, SHUT, SHUT, SHUT),
    "qwen3_8 qwen3_8_training": (TWICE, "ok", "ok", "ok", TWICE, "ok", "ok", TWICE, TWICE),
}  # fmt: skip
CELLS = ("measure inline", "measure field", "no reasoning", "system", "examples", "prefill", "chat", "masked")
OTHERS = ("sft", "messages", "preference", "ranking")


@pytest.fixture(scope="module")
def found() -> dict[str, dict[str, str]]:
    gguf("smollm2-135m")
    return table()


@pytest.mark.parametrize(("names", "expected"), EXPECTED.items())
def test_a_template_is_used_or_refused_for_the_named_reason(
    found: dict[str, dict[str, str]], names: str, expected: tuple[str, ...]
) -> None:
    for name in names.split():
        row = found[name]
        assert tuple(row[cell] for cell in CELLS) == expected[:-1], name
        assert {row[view] for view in OTHERS} == {expected[-1]}, name
        assert {row[view] for view in ("raw", "rlvr", "steps")} == {NOT_RENDERED}


def test_templates_of_pictures_are_refused_everywhere(found: dict[str, dict[str, str]]) -> None:
    for name in ("idefics3", "smolvlm", "llava_next"):
        assert "ok" not in {found[name][cell] for cell in (*CELLS[:2], *CELLS[-2:], *OTHERS)}


def test_the_table_of_the_documentation_is_what_the_code_says(found: dict[str, dict[str, str]]) -> None:
    file = Path(__file__).parents[3] / "tracefactory" / "docs" / "templates.md"
    assert file.read_text(encoding="utf-8") == document(found, version("trl"))


@pytest.mark.parametrize(
    "name", ["smollm2", "qwen3", "qwen3_5_think", "deepseek_r1_distill_training", "glm4moe_training"]
)
def test_the_mask_is_exact_and_nothing_is_doubled(name: str) -> None:
    renderer = Renderer(with_template(shipped()[name]), "inline")
    rendered = renderer.render(QUESTION, REASONING, ANSWER)
    prompt = renderer.template.text([USER], generate=True)
    whole = renderer.template.text([USER, INLINE], generate=False)
    assert renderer.tokenizer.decode(rendered.ids[rendered.first : rendered.stop].tolist()) == rendered.text
    assert renderer.tokenizer.decode(rendered.ids[: rendered.first].tolist()) == prompt
    assert prompt + rendered.text == whole.rstrip()
    assert (whole.count("<think>"), whole.count("</think>"), whole.count(REASONING)) == (1, 1, 1)


def test_a_source_alone_renders_as_the_tokenizer_does() -> None:
    conversation = [{"role": "system", "content": "Be brief."}, USER, INLINE, USER]
    for source in shipped().values():
        tokenizer = with_template(source)
        texts = []
        for template in (
            ChatTemplate.of_tokenizer(tokenizer),
            ChatTemplate.of_source(source, bos=tokenizer.bos_token, eos=tokenizer.eos_token),
        ):
            try:
                texts.append(template.text(conversation, generate=True))
            except RenderError as error:
                texts.append(error.reason)
        assert texts[0] == texts[1]


# What the message recommends works.


def test_r1_distill_is_measured_with_the_template_that_the_error_names() -> None:
    with pytest.raises(UserError, match=r"deepseek_r1_distill_training\.jinja") as info:
        Renderer(with_template(shipped()["deepseek_r1_distill"]), "inline").check()
    assert LOST in str(info.value)
    renderer = Renderer(with_template(shipped()["deepseek_r1_distill_training"]), "inline")
    renderer.check()
    assert renderer.render(QUESTION, REASONING, ANSWER).text.startswith("Half of 84")
    with pytest.raises(RenderError) as refused:
        renderer.render(QUESTION, "", ANSWER)
    assert refused.value.reason == NONE


@pytest.mark.parametrize(
    ("name", "placement", "says", "other", "with_placement"),
    [
        ("smollm2", "field", "`reasoning: inline`", "smollm2", "inline"),
        ("qwen3_8", "inline", "`reasoning: field`", "qwen3_8", "field"),
        ("glm4moe", "inline", "glm4moe_training.jinja", "glm4moe_training", "inline"),
        ("qwen3_5_nothink", "inline", "template of the thinking mode", "qwen3_5_think", "inline"),
    ],
)
def test_the_remedy_works(name: str, placement: Any, says: str, other: str, with_placement: Any) -> None:
    with pytest.raises(UserError, match=says):
        Renderer(with_template(shipped()[name]), placement).check()
    Renderer(with_template(shipped()[other]), with_placement).check()


def test_phi_ends_its_turn_once_when_the_remedy_is_applied() -> None:
    source = shipped()["phi3"]
    with pytest.raises(UserError, match="without `eos_token`") as info:
        Renderer(with_template(source), "inline").check()
    assert "end_doubled" in str(info.value)
    renderer = Renderer(with_template(source.replace("{{ eos_token }}", "")), "inline")
    renderer.check()
    assert renderer.render(QUESTION, REASONING, ANSWER).text.endswith("left.<|end|>")


# Decoding by two models.

OPENING = ["deepseek_r1_distill", "qwen3_5_think", "qwen3_6", "nemotron_3_nano", "qwen3_8"]


def asked(prefill: str | None) -> ChatRequest:
    messages = [USER] if prefill is None else [USER, {"role": "assistant", "content": prefill}]
    params = {"decoder": "reverse_speculative", "seed": 1, "max_tokens": 99}
    return ChatRequest(model_identity={}, messages=tuple(messages), params=params)


@pytest.mark.parametrize("prefill", ["<think>\n", "<think>", None, "<think>\nFirst,"])
@pytest.mark.parametrize("name", [*OPENING, "qwen3", "smollm2"])
def test_a_prefill_opens_the_thinking_once(name: str, prefill: str | None) -> None:
    tokenizer = with_template(shipped()[name])
    spec = rollout_spec(tokenizer, asked(prefill))
    text = tokenizer.decode(spec.prompt)
    opened = prefill is not None or name in OPENING
    assert text.count("<think>") == int(opened)
    assert spec.opened_in_prompt is opened
    if prefill is not None:
        assert text.endswith(prefill) or name in OPENING
        assert text.endswith("\nFirst,") or not prefill.endswith("First,")
    if name in OPENING:
        trained = ChatTemplate.of_tokenizer(tokenizer).text([USER], generate=True)
        assert text.startswith(trained)


@pytest.mark.parametrize("prefill", ["<think>\n", "Let us see:\n", "  x \n\n"])
def test_a_prefill_keeps_its_last_line_break(prefill: str) -> None:
    for name in ("smollm2", "qwen3", "glm4moe", "gemma3"):
        template = ChatTemplate.of_tokenizer(with_template(shipped()[name]))
        assert continued(template, asked(prefill).messages).endswith(prefill)


@pytest.mark.parametrize(("name", "kept"), [("gemma3", False), ("qwen3", False), ("llama3", False), ("qwen2_5", True)])
def test_a_served_prefill_that_a_template_changes_is_refused(name: str, kept: bool) -> None:
    """As vLLM does it, checked against the code that vLLM calls."""
    tokenizer = with_template(shipped()[name])
    template = ChatTemplate.of_tokenizer(tokenizer)
    messages = asked("<think>\n").messages
    faults = [one.reason for one in prompt_faults(template, Outline(*messages), Continues.RENDERED)]
    served = tokenizer.apply_chat_template([*messages], tokenize=False, continue_final_message=True)
    meant = continued(template, messages)
    assert (served == meant) is kept
    assert faults == ([] if kept else ["prefill_changed"])


@pytest.mark.parametrize("name", OPENING)
@pytest.mark.parametrize("closed", [True, False])
def test_a_decoded_trace_that_starts_inside_of_the_thinking_is_split_there(name: str, closed: bool) -> None:
    tokenizer = with_template(shipped()[name])
    run = Rollout(rollout_spec(tokenizer, asked(None)), compare(tokenizer, tokenizer), tokenizer)
    written = f"{REASONING}\n</think>\n\n{ANSWER}" if closed else REASONING
    for token in tokenizer.encode(written, add_special_tokens=False):
        run.write(token, Role.TEACHER, draw=1, logprobs={}, stops=())
    run.finish = "stop"
    decoded = Decoded.model_validate_json(Decoded.of(run, "two models", 0.0).model_dump_json())
    fields = reply_fields(decoded, opened_in_prompt=decoded.opened_in_prompt)
    assert fields["reasoning"] == REASONING
    assert fields["answer_text"] == (ANSWER if closed else "")
    assert fields["thinking"] is (Thinking.CLOSED if closed else Thinking.OPEN)


# Prompts.


class Outline:
    def __init__(self, *messages: Any) -> None:
        self.messages = messages

    def outline(self) -> list[dict[str, str]]:
        return [dict(message) for message in self.messages]


def test_worked_examples_in_the_system_message_keep_their_reasoning() -> None:
    template = ChatTemplate.of_tokenizer(with_template(shipped()["qwen3"]))
    (fault,) = prompt_faults(template, Outline(USER, INLINE, USER), Continues.JOINED)
    assert fault.reason == EARLIER
    assert REASONING not in template.text([USER, INLINE, USER], generate=True)
    system = {"role": "system", "content": f"An example.\n\n{QUESTION}\n{INLINE['content']}"}
    assert not list(prompt_faults(template, Outline(system, USER), Continues.JOINED))
    assert REASONING in template.text([system, USER], generate=True)


def test_gemma_takes_the_system_message_in_the_body() -> None:
    template = ChatTemplate.of_tokenizer(with_template(shipped()["gemma"]))
    system = {"role": "system", "content": "Be brief."}
    (fault,) = prompt_faults(template, Outline(system, USER), Continues.JOINED)
    assert fault.reason == "no_system_role"
    assert "beginning of the body" in fault.remedy
    moved = {"role": "user", "content": f"Be brief.\n\n{QUESTION}"}
    assert not list(prompt_faults(template, Outline(moved), Continues.JOINED))


# Pairs.


def test_a_pair_that_is_the_same_text_after_rendering_is_found() -> None:
    def pair(renderer: Renderer, other: str, answer: str = ANSWER) -> Any:
        rejected = {"role": "assistant", "content": f"<think>\n{other}\n</think>\n\n{answer}"}
        return {"prompt": [USER], "chosen": [INLINE], "rejected": [rejected]}

    original = Renderer(with_template(shipped()["deepseek_r1_distill"]), "inline")
    row = pair(original, REASONING + "\n\nWait, is it?")
    texts = [original.template.text([USER, row[side][0]], generate=False) for side in ("chosen", "rejected")]
    assert texts[0] == texts[1]
    with pytest.raises(RenderError):
        check_row(row, original)
    training = Renderer(with_template(shipped()["deepseek_r1_distill_training"]), "inline")
    check_row(row, training)
    with pytest.raises(RenderError) as info:
        check_row(pair(training, REASONING), training)
    assert info.value.reason == "pair_alike"


# The worst inputs.

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ BODY }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def reason_of(source: str, reasoning: str = REASONING, answer: str = ANSWER) -> str:
    message = {"role": "assistant", "content": f"<think>\n{reasoning}\n</think>\n\n{answer}"}
    try:
        rendered_turn(ChatTemplate.of_source(source), [USER], message)
    except RenderError as error:
        return error.reason
    return "ok"


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("m.content", "ok"),
        ("m.content.nothing.at.all", "template_failed"),
        ("1 // 0", "template_failed"),
        ("raise_exception('no')", "template_failed"),
        ("m.content[::-1]", LOST),
        ("m.content.split('</think>')[-1] ~ m.content.split('</think>')[0]", "answer_not_rendered"),
        ("m.content.replace('<think>', '').replace('</think>', '')", "not_delimited"),
        ("'<think>' ~ m.content", TWICE),
        ("m.content ~ '</think>'", TWICE),
        ("m.content.replace('</think>', '')", TWICE),
        ("m.content.replace('<think>', '')", TWICE),
        ("m.content | upper", LOST),
        ("m.content | replace('\\n\\n', '\\n')", LOST),
        ("m.content[:60]", "answer_not_rendered"),
        ("''", LOST),
    ],
)
def test_a_bad_template_has_a_reason(body: str, reason: str) -> None:
    assert reason_of(CHATML.replace("BODY", body)) == reason


@pytest.mark.parametrize(
    ("reasoning", "answer", "reason"),
    [
        ("", ANSWER, "ok"),
        ("   \n", ANSWER, "ok"),
        ("First.</think>Second.", ANSWER, "think_tag_inside"),
        ("First <think> second.", ANSWER, "think_tag_inside"),
        (REASONING, "It is </think> 42", "think_tag_inside"),
        ("So it is 42. 42 it is.", "42", "ok"),
        ("42", "42", "ok"),
        ("word " * 40_000, ANSWER, "ok"),
        ("半分は42個。 🍎 e\u0301 \u202e \x00", "答えは42。", "ok"),
        ("one\r\ntwo\r\n\r\nthree", "42\r\n", "ok"),
        ("a {{ b }} {% c %}", "{{ d }}", "ok"),
    ],
)
def test_bad_texts_are_rendered_whole_or_refused(reasoning: str, answer: str, reason: str) -> None:
    renderer = Renderer(with_template(CHATML.replace("BODY", "m.content")), "inline")
    if reason != "ok":
        with pytest.raises(RenderError) as info:
            renderer.render(QUESTION, reasoning, answer)
        assert info.value.reason == reason
        return
    rendered = renderer.render(QUESTION, reasoning, answer)
    renderer.check_mask(rendered)
    assert rendered.text[rendered.body_start :].startswith(reasoning if reasoning.strip() else answer)
    assert rendered.text.endswith(f"{answer}<|im_end|>")
