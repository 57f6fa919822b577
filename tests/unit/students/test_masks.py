"""What carries loss is what is meant, token by token, or the row is refused: at publish, and in `render`."""

from __future__ import annotations

import json
from typing import Any

import pytest

pytest.importorskip("transformers")

from tests.unit.students.conftest import gguf
from tracefactory.core.rows import Problem, Thinking, Tool, ToolCall, Trace, Turn
from tracefactory.publish.rendering import check_row, trainings
from tracefactory.publish.views import VIEWS, Group
from tracefactory.students.render import Renderer
from tracefactory.testing.templates import shipped, with_template
from tracefactory.text.chat_templates import RenderError
from tracefactory.text.turns import rendered_turn

REASONING, ANSWER = "Half of 84 is 42.\n\nSo 84 - 42 = 42.", "There are \\boxed{42} apples left."
USER = {"role": "user", "content": "A box holds 84 apples. Half are sold. How many are left?"}
HEAD = "{% for m in messages %}<|im_start|>{{ m.role }}\n"
TAIL = "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
PLAIN = HEAD + "{{ m.content }}<|im_end|>\n" + TAIL
BEGIN, END = "{% generation %}", "{% endgeneration %}"


def marked(body: str) -> str:
    """Return a template whose assistant's messages are written by `body`."""
    other = "{{ m.content }}<|im_end|>\n"
    return HEAD + "{% if m.role == 'assistant' %}" + body + "{% else %}" + other + "{% endif %}" + TAIL


def renderer(source: str) -> Renderer:
    gguf("smollm2-135m")
    return Renderer(with_template(source), "inline")


def turns_of(reasoning: str = REASONING, answer: str = ANSWER) -> dict[str, Any]:
    thinking = f"<think>\n{reasoning}\n</think>\n\n" if reasoning else ""
    return {"role": "assistant", "content": thinking + answer}


def reason_of(row: dict[str, Any], source: str = PLAIN) -> str:
    try:
        check_row(row, renderer(source))
    except RenderError as error:
        return error.reason
    return "ok"


TALK = {"messages": [USER, turns_of("Is it 40?", "It is 40."), {"role": "user", "content": "No."}, turns_of()]}


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("{{ m.content }}<|im_end|>\n", "ok"),  # no marks: trainers find the messages by their text
        (BEGIN + "{{ m.content }}<|im_end|>" + END + "\n", "ok"),
        (BEGIN + "{{ m.content }}<|im_end|>\n" + END, "ok"),  # the line break does no harm
        ("{%- generation -%}{{ m.content }}<|im_end|>{%- endgeneration -%}\n", "ok"),
        (BEGIN + "{{ m.content }}" + END + "<|im_end|>\n", "marks_differ"),  # it never learns to stop
        ("{{ m.content.split('</think>')[0] }}</think>" + BEGIN + "{{ m.content.split('</think>')[1] }}<|im_end|>" + END
         + "\n", "marks_differ"),  # answers alone
        (BEGIN + "{{ m.content[:30] }}" + END + "{{ m.content[30:] }}" + BEGIN + "<|im_end|>" + END + "\n",
         "marks_differ"),
        ("{% if loop.last %}" + BEGIN + "{{ m.content }}<|im_end|>" + END + "{% else %}{{ m.content }}<|im_end|>"
         "{% endif %}\n", "marks_differ"),  # the last message alone
        ("{{ m.content }}<|im_end|>\n" + BEGIN + END, "marks_differ"),
    ],
)  # fmt: skip
def test_generation_marks_are_around_the_assistants_messages_and_nothing_else(body: str, reason: str) -> None:
    assert reason_of(TALK, marked(body)) == reason


def test_generation_marks_around_everything_are_refused() -> None:
    everything = "{% for m in messages %}{% generation %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
    assert reason_of(TALK, everything + "{% endgeneration %}" + TAIL) == "marks_differ"
    assert reason_of({"prompt": [USER], "completion": [turns_of()]}, everything + "{% endgeneration %}" + TAIL) == "ok"


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"messages": [USER, turns_of("", "")]}, "empty_turn"),
        ({"messages": [USER, turns_of("", " \n")]}, "empty_turn"),
        ({"messages": [USER, turns_of("", ""), USER, turns_of()]}, "empty_turn"),
        ({"prompt": [USER], "completion": [turns_of("", "")]}, "empty_turn"),
        (
            {"prompt": [USER, turns_of("", ""), USER], "completion": [turns_of()]},
            "ok",
        ),  # what comes before is not trained
        ({"messages": [{**USER, "content": ""}, turns_of()]}, "ok"),
        ({"prompt": [USER], "chosen": [turns_of()], "rejected": [turns_of("", "")]}, "empty_turn"),
        ({"messages": [USER, turns_of("Then <|endoftext|> comes.")]}, "special_token_inside"),
        ({"messages": [USER, turns_of(answer="See <filename>.")]}, "special_token_inside"),  # of SmolLM2 alone
        ({"messages": [{**USER, "content": "Read <file_sep> aloud."}, turns_of()]}, "special_token_inside"),
        ({"messages": [USER, turns_of("a < b, <b>bold</b>, <unknown>, <|nothing|>")]}, "ok"),
        ({"messages": [USER, turns_of(answer="半分は42個。 🍎 e\u0301 \u202e")]}, "ok"),
    ],
)
def test_empty_turns_and_control_tokens_of_the_student_are_refused(row: dict[str, Any], reason: str) -> None:
    assert reason_of(row) == reason


def test_a_template_that_drops_what_carries_loss_is_refused() -> None:
    stripping = marked("{{ m.content.split('</think>')[-1] }}<|im_end|>\n")
    assert reason_of(TALK, stripping) == "reasoning_not_rendered"
    last = marked("{{ m.content if loop.last else m.content.split('</think>')[-1] }}<|im_end|>\n")
    assert reason_of(TALK, last) == "earlier_reasoning_not_rendered"
    short = marked("{{ m.content if loop.last else m.content.split('</think>')[0] ~ '</think>' }}<|im_end|>\n")
    assert reason_of(TALK, short) == "earlier_answer_not_rendered"


def test_a_token_across_the_start_of_the_turn_is_refused() -> None:
    joined = HEAD.replace("\n", " app") + "{{ m.content }}<|im_end|>\n" + TAIL.replace("\n", " app")
    row = {"messages": [USER, turns_of("", "les are left")]}
    assert reason_of(row, joined) == "mask_not_exact"
    assert reason_of({"prompt": [USER], "completion": row["messages"][1:]}, joined) == "mask_not_exact"


def test_a_tokenizer_that_composes_characters_trains_on_the_same_text() -> None:
    from tokenizers import normalizers

    own = renderer(PLAIN)
    own.tokenizer._tokenizer = type(own.tokenizer.backend_tokenizer).from_str(own.tokenizer.backend_tokenizer.to_str())
    own.tokenizer._tokenizer.normalizer = normalizers.NFC()
    row = {"messages": [USER, turns_of("So e\u0301 = é.", "It is e\u0301.")]}
    (one,) = trainings(row)
    tokens = own.tokens_of(rendered_turn(own.template, one.before, one.last))
    assert own.decode(tokens.ids[tokens.first : tokens.stop]) != tokens.text
    check_row(row, own)


# The view `masked`: no token is partly cut.

MASKED = "Take 84.\n\nLet me check: 42 + 42 = 84.\n\nIt is 42."


def masked_row(cut: str) -> dict[str, Any]:
    content = turns_of(MASKED)["content"]
    at = content.index(cut)
    ranges = [(0, at, True), (at, at + len(cut), False), (at + len(cut), len(content), True)]
    details = [
        {"begin_offset": begin, "end_offset": end - 1, "train": train} for begin, end, train in ranges if begin < end
    ]
    return {"masked_messages": [{**USER, "train_detail": None}, {**turns_of(MASKED), "train_detail": details}]}


@pytest.mark.parametrize(
    ("cut", "reason"),
    [
        ("Let me check: 42 + 42 = 84.\n\n", "ok"),
        ("\n\nLet me check: 42 + 42 = 84.", "ok"),  # a line break more or less does no harm
        ("Let me check: 42 + 42 = 84.", "ok"),
        (" check: 42", "ok"),
        ("t me che", "mask_not_exact"),
        ("eck: 42 + 42 = 8", "mask_not_exact"),
        ("Take 84.\n\nLet me check: 42 + 42 = 84.\n\nIt is 42.", "ok"),
    ],
)
def test_the_ranges_of_the_masked_view_cut_whole_tokens(cut: str, reason: str) -> None:
    assert reason_of(masked_row(cut)) == reason


def test_ranges_that_a_template_moves_are_refused() -> None:
    rewriting = marked("{{ m.content.replace('</think>\\n\\n', '</think>\\n') }}<|im_end|>\n")
    assert reason_of(masked_row("Let me check: 42 + 42 = 84."), rewriting) == "ranges_moved"


# Tool calls.

CODE = 'print("left:", 84 - 84 // 2)'
PYTHON = Tool(name="python", parameters='{"type": "object", "properties": {"code": {"type": "string"}}}')


def tool_row(arguments: str = json.dumps({"code": CODE, "times": 1}), reasoning: str = "A program is safer.") -> Any:
    problem = Problem.make(question=USER["content"], answer="42").model_copy(update={"tools": (PYTHON,)})
    turns = (
        Turn(
            role="assistant", reasoning=reasoning, tool_calls=(ToolCall(id="c1", name="python", arguments=arguments),)
        ),
        Turn(role="tool", content="left: 42", call_id="c1", name="python"),
    )
    rest = {"reasoning": reasoning and REASONING, "thinking": Thinking.CLOSED if reasoning else Thinking.NONE}
    trace = Trace(id="t", problem=problem, turns=turns, answer_text=ANSWER, **rest)
    made = VIEWS.get("tool_use").rows(Group(problem, [trace]))
    return made.rows[0] if made.rows else next(iter(made.refused.values())).reason


@pytest.mark.parametrize(
    ("name", "reasoning", "reason"),
    [
        ("qwen3", "A program is safer.", "ok"),
        ("qwen3", "", "ok"),
        ("qwen2_5", "A program is safer.", "reasoning_not_rendered"),
        ("qwen2_5", "", "ok"),
        ("qwen2_5_training", "", "ok"),
        ("llama3", "", "tool_call_not_rendered"),  # it would learn to end its turn where the call stands
        ("deepseek_r1_distill", "", "no_reasoning"),
        ("smollm2", "", "tool_call_not_rendered"),
    ],
)
def test_a_template_without_tools_is_refused_for_the_view_tool_use(name: str, reasoning: str, reason: str) -> None:
    pytest.importorskip("trl")
    assert reason_of(tool_row(reasoning=reasoning), shipped()[name]) == reason


def test_arguments_are_not_written_as_json_within_json() -> None:
    """Qwen2.5's template writes arguments as JSON: text that is JSON already would be written twice."""
    pytest.importorskip("trl")
    own = renderer(shipped()["qwen2_5"])
    row = tool_row(reasoning="")
    (one,) = trainings(row)
    assert one.before[1]["tool_calls"][0]["function"]["arguments"] == {"code": CODE, "times": 1}
    assert "name" not in one.before[1]  # no keys without a value
    text = own.template.text([*one.before, one.last], generate=False, tools=one.tools)
    assert '"arguments": {"code": "print(\\"left:\\", 84' in text
    doubling = shipped()["qwen2_5"].replace("tool_call.arguments | tojson", "(tool_call.arguments | tojson) | tojson")
    assert doubling != shipped()["qwen2_5"]
    assert reason_of(row, doubling) == "tool_call_not_rendered"


@pytest.mark.parametrize("arguments", ["", "[1]", "{", "print(1)"])
def test_the_view_tool_use_refuses_arguments_that_are_no_object(arguments: str) -> None:
    assert tool_row(arguments) == "arguments_not_an_object"


def test_views_of_one_trace_are_tokenized_once(monkeypatch: pytest.MonkeyPatch) -> None:
    own = renderer(PLAIN)
    rows = [{"messages": [USER, turns_of()]}, {"prompt": [USER], "completion": [turns_of()]}]
    for row in rows:
        check_row(row, own)
    assert own._tokenized.cache_info().misses == 1
