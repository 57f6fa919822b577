"""The filters thinking_closed, length, repetition and verdict, each as a user's pipeline would run it."""

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from tracefactory.filters import Decision, Outcome, Thinking, Trace, apply, load_filters
from tracefactory.testing import make_trace

ROOT = Path(__file__).parents[2]
DATA = ROOT.parent / "shared" / "data"
FILTERS = load_filters(ROOT / "filters")


def decide(name: str, trace: Trace, **params: Any) -> Decision:
    loaded = FILTERS[name]
    return apply(loaded, trace, loaded.params_model.model_validate(params))


@pytest.mark.parametrize(
    ("trace", "params", "reason"),
    [
        ({"reasoning": "6 * 7 = 42"}, {}, None),
        ({}, {}, None),  # a short style has no thinking to close
        ({}, {"required": True}, "no_thinking"),
        ({"reasoning": "hm", "thinking": Thinking.OPEN, "finish_reason": "length"}, {}, "thinking_not_closed"),
        ({"reasoning": "hm", "thinking": Thinking.OPEN}, {"finished": False}, "thinking_not_closed"),
        ({"reasoning": "hm", "finish_reason": "length"}, {}, "answer_not_finished"),
        ({"reasoning": "hm", "finish_reason": "content_filter"}, {}, "answer_not_finished"),
        ({"reasoning": "hm", "finish_reason": "length"}, {"finished": False}, None),
        ({"reasoning": "hm", "answer_text": " \n"}, {}, "no_answer_text"),
        ({"reasoning": "a <think> b"}, {}, "stray_thinking_tag"),
        ({"answer_text": "hm</think> 42"}, {}, "stray_thinking_tag"),
        ({"answer_text": "I think <thinker> is no tag"}, {}, None),
    ],
)
def test_thinking_closed_drops_traces_with_open_thinking(
    trace: dict[str, Any], params: dict[str, Any], reason: str | None
):
    assert decide("thinking_closed", make_trace(**trace), **params).reason == reason


@pytest.mark.parametrize(
    ("params", "reason"),
    [
        ({"max_tokens": 10}, None),
        ({"max_tokens": 9}, "too_long"),
        ({"min_tokens": 10, "max_tokens": 10}, None),
        ({"min_tokens": 11}, "too_short"),
        ({"max_characters": 50}, None),  # 30 and 20
        ({"max_characters": 49}, "too_long"),
        ({"max_characters": 30, "part": "reasoning"}, None),
        ({"max_characters": 29, "part": "reasoning"}, "too_long"),
        ({"min_characters": 21, "part": "answer"}, "too_short"),
        ({"max_tokens": 100, "max_characters": 10}, "too_long"),
    ],
)
def test_length_drops_traces_outside_of_its_bounds(params: dict[str, Any], reason: str | None):
    trace = make_trace(reasoning="r" * 30, answer_text="a" * 20, completion_tokens=10)
    assert decide("length", trace, **params).reason == reason


def test_length_details_have_value_and_bound():
    decision = decide("length", make_trace(reasoning="r" * 30, completion_tokens=10), max_tokens=9)
    assert decision.detail == "10 tokens, at most 9"


def test_length_in_tokens_drops_traces_without_token_counts():
    trace = make_trace(completion_tokens=0)
    assert decide("length", trace, max_tokens=9).reason == "tokens_unknown"
    assert decide("length", trace, max_characters=99).keep


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({}, "at least one of"),
        ({"min_tokens": 5, "max_tokens": 4}, "above the maximum"),
        ({"max_tokens": 5, "part": "answer"}, "whole completion only"),
        ({"max_tokens": 0}, "greater than or equal to 1"),
        ({"max_token": 5}, "Extra inputs"),
    ],
)
def test_length_refuses_invalid_bounds(params: dict[str, Any], message: str):
    with pytest.raises(ValidationError, match=message):
        FILTERS["length"].params_model.model_validate(params)


def test_verdict_keeps_only_correct_traces_by_default():
    for outcome in Outcome:
        found = decide("verdict", make_trace(outcome=outcome)).reason
        assert found == (None if outcome is Outcome.CORRECT else outcome.value)
    assert decide("verdict", make_trace(outcome="incorrect"), keep=["incorrect", "unverifiable"]).keep
    assert decide("verdict", make_trace(), keep=["incorrect"]).reason == "correct"
    assert decide("verdict", make_trace(outcome=None)).reason == "not_verified"
    with pytest.raises(ValidationError, match="'correct', 'incorrect'"):
        FILTERS["verdict"].params_model.model_validate({"keep": ["right"]})
    with pytest.raises(ValidationError, match="at least 1"):
        FILTERS["verdict"].params_model.model_validate({"keep": []})


def test_false_equations_drops_traces_that_state_false_sums():
    right = make_trace(reasoning="7 + 5 = 12.\n12 - 1 = 11.", answer_text="11")
    wrong = make_trace(reasoning="7 + 5 = 12.\n12 - 1 = 13.", answer_text="It is 12 + 1 = 14.")
    assert decide("false_equations", right).keep
    decision = decide("false_equations", wrong)
    assert (decision.reason, decision.detail) == ("false_equation", "12 - 1 = 13, and 1 more")
    assert decide("false_equations", wrong, max_false=2).keep
    assert decide("false_equations", wrong, max_false=1).reason == "false_equation"
    with pytest.raises(ValidationError, match="greater than or equal to 0"):
        FILTERS["false_equations"].params_model.model_validate({"max_false": -1})


@pytest.mark.skipif(not DATA.is_dir(), reason="needs the real traces of ../shared/data")
def test_false_equations_are_few_in_the_traces_of_a_large_model():
    """By eye, the 3 of 256 state what is false, such as "6881*0.03752 = 6881*0.03"."""
    lines = (DATA / "traces" / "r1_0528_chat_256.jsonl").read_text().splitlines()
    texts = ["\n".join(turn["content"] for turn in json.loads(line)["completion"]) for line in lines]
    found = Counter(decide("false_equations", make_trace(answer_text=text)).reason for text in texts)
    assert found == {None: 253, "false_equation": 3}


def sentences(count: int, seed: int = 1) -> str:
    """Reasoning that recounts cases in one form of words, as long derivations do, with other numbers each time."""
    dice = random.Random(seed)
    steps = [
        "So the case n = {} gives {} ways.",
        "Next, {} times {} has to be added.",
        "Wait, is {} prime? {} divides it.",
    ]
    return "\n".join(dice.choice(steps).format(dice.randrange(999), dice.randrange(999)) for _ in range(count))


@pytest.mark.parametrize("period", [1, 2, 7, 40, 300])
@pytest.mark.parametrize("where", ["reasoning", "answer_text"])
def test_repetition_finds_loops_of_any_period(period: int, where: str):
    unit = " ".join(f"w{n}" for n in range(period))
    looping = sentences(400) + "\n" + " ".join([unit] * (1 + 900 // period)) + "\n" + sentences(400, seed=2)
    decision = decide("repetition", make_trace(**{where: looping}))
    assert decision.reason == "loop"
    assert f"the same {period} again" in (decision.detail or "")
    assert decide("repetition", make_trace(**{where: sentences(800)})).keep


def test_repetition_finds_repeated_paragraphs_that_are_not_adjacent():
    paragraph = [sentences(6, seed) for seed in range(3)]
    dice = random.Random(5)
    circling = "\n".join(f"{dice.choice(paragraph)}\nStep {n}." for n in range(40))
    assert decide("repetition", make_trace(reasoning=circling)).reason == "repeated_ngrams"
    assert decide("repetition", make_trace(reasoning=circling), max_ngram_share=1).reason == "repeated_lines"
    assert decide("repetition", make_trace(reasoning=circling), max_ngram_share=1, max_line_share=1).keep


def test_repetition_lets_the_answer_restate_the_reasoning():
    text = sentences(100)
    assert decide("repetition", make_trace(reasoning=text, answer_text=text)).keep


@pytest.mark.parametrize("text", ["", "42", "ha ha ha ha ha", "-" * 90, "0 1 0 0 0 0\n" * 15])
def test_repetition_ignores_short_repeated_texts(text: str):
    assert decide("repetition", make_trace(answer_text=text)).keep


def test_repetition_ignores_shares_of_short_texts():
    table = make_trace(answer_text="0 1 0 0 0 0\n" * 15)
    assert decide("repetition", table, min_tokens=90).reason == "repeated_ngrams"
    assert decide("repetition", table, max_loop=80).reason == "loop"


def test_repetition_reads_chinese_without_spaces():
    file = DATA / "problems" / "cmath_test.jsonl"
    if not file.exists():
        pytest.skip("no shared data here")
    questions = [json.loads(line)["question"] for line in file.read_text("utf-8").splitlines()]
    prose = "".join(questions[:200])
    assert decide("repetition", make_trace(reasoning=prose)).keep
    looping = prose + "等一下，我再检查一遍这个结果是否正确。" * 30
    assert decide("repetition", make_trace(reasoning=looping)).reason == "loop"
    # The same sentences again and again, in changing order, with no line breaks to go by.
    dice = random.Random(3)
    circling = "".join(dice.choice(questions[:5]) for _ in range(60))
    assert decide("repetition", make_trace(reasoning=circling)).reason in ("repeated_ngrams", "loop")


def test_repetition_on_real_long_traces():
    """Counted by eye once: which of 90 long traces of a looping model loop, and that long traces of sound ones pass."""
    folder = DATA / "traces"
    if not folder.exists():
        pytest.skip("no shared data here")
    dropped: dict[str, Counter[str | None]] = {}
    for name in ("aime25_long_cot", "misguided_attention_open_models", "r1_0528_chat_256"):
        counts = dropped[name] = Counter()
        for line in (folder / f"{name}.jsonl").read_text("utf-8").splitlines():
            row = json.loads(line)
            if name.startswith("r1"):
                reasoning, _, answer = row["completion"][0]["content"].partition("</think>")
            else:
                reasoning, answer = row["thinking"] or "", row["response"]
            counts[decide("repetition", make_trace(reasoning=reasoning, answer_text=answer)).reason] += 1
    assert dropped["aime25_long_cot"] == {None: 72, "loop": 16, "repeated_ngrams": 2}
    assert dropped["misguided_attention_open_models"] == {None: 309, "loop": 2, "repeated_ngrams": 1}
    assert dropped["r1_0528_chat_256"] == {None: 256}
