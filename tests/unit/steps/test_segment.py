"""Steps lose nothing, keep whole what belongs together, and are found in linear time."""

import json
import math
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tracefactory.text.steps import Granularity, StepKind, segment
from tracefactory.text.steps.protect import protected
from tracefactory.text.steps.words import count_words

TRACES = Path(__file__).parents[3].parent / "shared" / "data" / "traces"
ALL = list(Granularity)

PIECES = [
    *(
        "Wait, ",
        "Let me check. ",
        "等等，",
        "验证一下。",
        "The answer is 4. ",
        "x = 3.5",
        ". ",
        "。",
        "e.g. ",
        "...",
        "？",
        "So ",
        "a",
    ),
    *("\n", "\n\n", " \n \n", "\r\n", "\r\n\r\n", "\t", "\x0b", "\u2028", "\u0085", " "),
    *("$", "$$", "\\[", "\\]", "\\(", "\\)", "\\begin{align}", "\\end{align}", "\\boxed{", "}"),
    *("```", "```python\n", "~~~", "`", "| a | b |\n", "|---|---|\n"),
    *("- item\n", "1. one\n", "2. two\n", "   - deeper\n", "# Title\n", "**Bold:**\n"),
]
LOOPS = [
    *(
        "15840 ÷ 1440 = ",
        ".",
        "..",
        "\n",
        "\n \n",
        " ",
        "(",
        "\\\\",
        "步骤 ",
        "1. ",
        "Wait. ",
        "Wait, ",
        "So the answer is 3? ",
        "等等。",
    ),
    *(
        "$",
        "$$ ",
        "\\[ ",
        "\\begin{a}",
        "\\boxed{",
        "`",
        "``` ",
        "```\n",
        "|",
        "|-",
        "| a\n",
        "- a\n",
        "- a\n\n",
        "# ",
        "**",
    ),
    *("Hmm. Okay, ", "so but and then "),
]


def parts(text: str, granularity: Granularity = Granularity.STEP) -> list[str]:
    return [step.of(text) for step in segment(text, granularity)]


def kinds(text: str) -> list[StepKind]:
    return [step.kind for step in segment(text)]


def assert_whole(text: str, granularity: Granularity) -> None:
    steps = segment(text, granularity)
    assert "".join(step.of(text) for step in steps) == text
    assert [step.index for step in steps] == list(range(len(steps)))
    assert all(step.start < step.end for step in steps)
    if text.strip():
        assert all(step.of(text).strip() for step in steps)
    cuts = {step.start for step in steps}
    for span in protected(text):
        assert not any(span.start < cut < span.end for cut in cuts), text[span.start : span.end]


@given(st.lists(st.sampled_from(PIECES), max_size=60).map("".join), st.sampled_from(ALL))
@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_no_character_is_lost_in_hostile_markup(text: str, granularity: Granularity) -> None:
    assert_whole(text, granularity)


@given(st.text(max_size=300), st.sampled_from(ALL))
@settings(max_examples=200, deadline=None)
def test_no_character_is_lost_in_any_text(text: str, granularity: Granularity) -> None:
    assert_whole(text, granularity)


def test_the_empty_text_has_no_steps_and_white_space_is_one() -> None:
    assert segment("") == ()
    assert parts(" \n\n \n") == [" \n\n \n"]


def test_white_space_belongs_to_the_step_before_it_and_to_the_first() -> None:
    assert parts("\n\n Let x be 3 here.\n\n\n\nThen y is 4.\n") == ["\n\n Let x be 3 here.\n\n\n\n", "Then y is 4.\n"]


def test_a_sentence_that_turns_the_reasoning_opens_a_step() -> None:
    text = "We get 12 + 3 = 15 eggs. Wait, he eats 2 of them. So 13 remain. Let me check: 13 + 2 = 15."
    assert [part.strip() for part in parts(text)] == [
        "We get 12 + 3 = 15 eggs.",
        "Wait, he eats 2 of them. So 13 remain.",
        "Let me check: 13 + 2 = 15.",
    ]


def test_chinese_turns_without_spaces_open_steps() -> None:
    text = "一共有12+3=15个鸡蛋。等等，他吃掉了2个，所以剩下13个。让我验证一下：13+2=15，正确。所以答案是13。"
    assert parts(text) == [
        "一共有12+3=15个鸡蛋。",
        "等等，他吃掉了2个，所以剩下13个。",
        "让我验证一下：13+2=15，正确。",
        "所以答案是13。",
    ]


@pytest.mark.parametrize(
    "whole",
    [
        "\\[\na = 1. B = 2\n\n= 3\n\\]",
        "$$\nx = 1\n\ny = 2\n$$",
        "\\begin{align}\nx &= 1. \\\\[2pt]\n\nY &= 2.\n\\end{align}",
        "```python\nprint(1)\n\n# Wait, what?\nprint(2)\n```",
        "~~~\nfirst.\n\nSecond.\n~~~",
        "- one. Two.\n- three. Wait, four.\n  more of it\n- five",
        "1. one\n\n2. two\n\n3. three",
        "| n | f |\n|---|---|\n| 1 | One. Two. |\n| 2 | Wait. |",
        "n | f\n---|---\n1 | One. Two.\n2 | Three.",
        "| n | $f = 1. Also$ |\n|---|---|\n| 1 | `print. Wait, what` |\n| 2 | One. Two. |",
    ],
)
@pytest.mark.parametrize("granularity", ALL)
def test_code_math_and_tables_are_not_split(whole: str, granularity: Granularity) -> None:
    text = f"First some words.\n\n{whole}\n\nThen we go on."
    assert any(whole in part for part in parts(text, granularity)), parts(text, granularity)
    assert parts(text, granularity)[-1] == "Then we go on."


def test_inline_math_and_code_are_not_cut_at_their_stops() -> None:
    text = "We know \\(f(x) = 1. Also\\) and $a. B$ and `x. Y` hold. Next we see."
    assert parts(text, Granularity.SENTENCE) == [text[: text.index("Next")], "Next we see."]


def test_an_unclosed_display_does_not_swallow_the_rest() -> None:
    text = "Take $x = 3 here.\n\nThen \\( y = 4.\n\nThen z = 5.\n\nThen w = 6."
    assert len(parts(text)) == 4


def test_an_unclosed_code_fence_runs_to_the_end() -> None:
    text = "Run it.\n\n```python\na = 1\n\nb = 2\n\nc = 3"
    assert parts(text) == ["Run it.\n\n", "```python\na = 1\n\nb = 2\n\nc = 3"]


def test_prices_are_not_math() -> None:
    text = "It costs $5. He pays $10. So 5 come back."
    assert len(parts(text, Granularity.SENTENCE)) == 3


def test_a_lead_in_stays_with_what_it_announces() -> None:
    text = "Factor out b:\n\nb*(9 - k) = 7\n\nTherefore,\n\n\\[ b = 1 \\]\n\nwhere k is whole.\n\nNext, take k = 2."
    assert parts(text) == [
        "Factor out b:\n\nb*(9 - k) = 7\n\n",
        "Therefore,\n\n\\[ b = 1 \\]\n\nwhere k is whole.\n\n",
        "Next, take k = 2.",
    ]


def test_a_heading_goes_with_the_text_below_it() -> None:
    assert parts("### Step 1\n\nAdd 2 and 3.\n\n**Step 2: multiply**\n\nGet 10.") == [
        "### Step 1\n\nAdd 2 and 3.\n\n",
        "**Step 2: multiply**\n\nGet 10.",
    ]


def test_a_text_of_single_lines_has_lines_for_steps() -> None:
    text = "She sells 16 - 7 = 9 eggs\nShe makes 9 * 2 = 18 dollars\nStep 3: add it up\n#### 18"
    assert len(parts(text)) == 4


def test_hard_wrapped_prose_is_one_paragraph() -> None:
    text = "The sum of the first numbers is known to grow with\nthe square of how many there are, which we\nuse below."
    assert len(parts(text)) == 1


def test_a_list_that_outlines_a_solution_is_cut_between_its_items() -> None:
    body = "We compute the thing carefully and write down what comes of it. " * 4
    text = f"1. **First**\n   - {body}\n\n2. **Second**\n   - {body}\n\n3. **Third**\n   - {body}"
    assert [part[:2] for part in parts(text)] == ["1.", "2.", "3."]


def test_a_dollar_after_a_space_closes_no_formula() -> None:
    text = "A cup is $c or $f(x) = 1. Also$ here. Next we see."
    assert parts(text, Granularity.SENTENCE) == [text[: text.index("Next")], "Next we see."]


def test_abbreviations_decimals_and_variables_end_no_sentence() -> None:
    text = "We use e.g. Fig. 3 and x = 2.5 here. The value n. is small. Done now."
    assert len(parts(text, Granularity.SENTENCE)) == 3


def test_long_prose_is_cut_between_sentences() -> None:
    text = "The quantity grows by a fixed amount in each of the rounds that we look at. " * 40
    lengths = [len(part) for part in parts(text)]
    assert max(lengths) < 700
    assert len(lengths) > 3


@pytest.mark.parametrize("unit", LOOPS)
def test_looping_texts_take_linear_time(unit: str) -> None:
    seconds = []
    for length in (10_000, 80_000):
        text, least = unit * (length // len(unit)), math.inf
        for _ in range(2):  # a busy machine can make one of them slow
            before = time.process_time()
            steps = segment(text)
            least = min(least, time.process_time() - before)
        seconds.append(least)
        assert steps[-1].end == len(text)
    assert seconds[1] < 30 * max(seconds[0], 0.01)  # 8 times the text; quadratic time would be 64 times


@pytest.mark.skipif(not TRACES.exists(), reason="needs the shared traces")
def test_real_traces_lose_nothing_and_have_usable_steps() -> None:
    rows = [json.loads(line) for line in (TRACES / "aime25_long_cot.jsonl").read_text().splitlines()]
    for row in rows:
        text = row["response"]
        steps = segment(text)
        assert "".join(step.of(text) for step in steps) == text
        if "</think>" in text or "<End_of_Draft>" in text:
            assert len(steps) > len(text) / 2_000


def test_words_count_chinese_characters_singly() -> None:
    assert count_words("two words 三个字") == 5
    assert count_words("  ") == 0
