"""The same words measure the same with and without think tags, under a real student."""

from __future__ import annotations

import json
from collections.abc import Mapping

import pytest

from tests.unit.stages.conftest import RunStages, run_stages  # noqa: F401
from tests.unit.stages.test_measure import PUPIL
from tests.unit.students.test_measures import scores
from tracefactory.students.measures import MeasureParams, measure_columns, trace_measures
from tracefactory.students.over import Over, of_text
from tracefactory.students.student import Student

QUESTION = "Natalia sold clips to 48 friends in April, and half as many in May. How many clips did she sell altogether?"
REASONING = """\
First, find how many clips Natalia sold in each month. In April she sold 48 clips, because she sold one clip to each of
her 48 friends. In May she sold half as many clips as in April. Half of 48 is 24, because 48 divided by 2 is 24. So she
sold 24 clips in May.

Now add the clips of both months. The total is the number of clips sold in April plus the number of clips sold in May.
That is 48 plus 24. 48 plus 20 is 68, and 68 plus 4 is 72. So the total number of clips is 72.

Let me check the result. If she sold 72 clips altogether and 48 of them in April, then she sold 72 minus 48 in May. That
is 24. This is half of 48, as the problem says. So the result is right."""
ANSWER = "Natalia sold 72 clips altogether. The answer is 72."


@pytest.fixture(scope="module")
def measured(smollm: Student) -> dict[tuple[Over, bool], Mapping[str, float]]:
    """The measures of the same words, with think tags and without."""
    found = {}
    for tagged, reasoning, answer in ((True, REASONING, ANSWER), (False, "", f"{REASONING}\n\n{ANSWER}")):
        rendered = smollm.render(QUESTION, reasoning, answer)
        [every] = smollm.score([rendered])
        found[Over.ALL, tagged] = trace_measures(every)
        found[Over.TEXT, tagged] = trace_measures(of_text(every, rendered.text, reasoning, answer))
    return found


@pytest.mark.parametrize("name", ["rank_surprisal", "mean_surprisal", "mean_clipped_rank", "acceptance_p0.01_top20"])
def test_the_same_words_measure_the_same_with_and_without_tags(
    measured: dict[tuple[Over, bool], Mapping[str, float]], name: str
) -> None:
    tagged, plain = measured[Over.TEXT, True][name], measured[Over.TEXT, False][name]
    tagged_all, plain_all = measured[Over.ALL, True][name], measured[Over.ALL, False][name]
    assert tagged == pytest.approx(plain, rel=0.04)
    assert abs(tagged_all - plain_all) > 2 * abs(tagged - plain)
    if name == "rank_surprisal":
        assert tagged_all > 1.05 * plain_all


def test_delimiters_and_the_end_of_turn_are_left_out_and_nothing_else(smollm: Student) -> None:
    rendered = smollm.render(QUESTION, f"\n{REASONING}\n", ANSWER)
    [every] = smollm.score([rendered])
    text = of_text(every, rendered.text, f"\n{REASONING}\n", ANSWER)
    words = "".join(rendered.text[a:b] for a, b in zip(text.starts, text.ends, strict=True))
    assert words == REASONING + ANSWER
    left = set(every.starts.tolist()) - set(text.starts.tolist())
    out = [rendered.text[a:b] for a, b in zip(every.starts, every.ends, strict=True) if a in left]
    assert "".join(out).split() == ["<think>", "</think>", "<|im_end|>"]
    assert len(text) + len(out) == len(every)
    assert text.instead is not None
    assert len(text.instead) == len(text)


def test_a_token_across_the_end_of_the_words_is_one_of_them() -> None:
    whole = scores([0.5] * 4)  # tokens of two characters each
    kept = of_text(whole, "<>ab.\n.<", "ab.", "")
    assert (kept.starts.tolist(), kept.ends.tolist()) == ([2, 4], [4, 6])
    assert len(of_text(whole, "<>ab.\n.<", " ", "")) == 0
    with pytest.raises(ValueError, match="substring"):
        of_text(whole, "<>ab.\n.<", "ab.", "cd")


def test_columns_say_what_they_are_over() -> None:
    for over, output in ((Over.TEXT, "without think tags"), (Over.ALL, "with think tags and end of turn")):
        columns = {one.name: one.description for one in measure_columns("s", MeasureParams(), over, entropies=True)}
        assert all(output in text for name, text in columns.items() if name != "s/tokens")
        assert columns["s/tokens"].startswith("All supervised tokens")


STAGES = """\
  - {id: problems, source: files, with: {paths: problems.jsonl, question: q, answer: a}}
  - {id: sampled, sample: chat, with: {model: teacher, prompt: math_long, samples: 1}}
  - {id: fitted, measure: student, with: {student: pupil, over: OVER}}
  - {id: kept, filter: [rank_surprisal: {student: pupil, max: 100}, student_tokens: {student: pupil, min: 5}]}
  - {id: chosen, select: best, with: {measure: pupil/rank_surprisal, best: lowest, n: 1}}
"""


async def test_measuring_over_other_tokens_takes_no_forward_pass(run_stages: RunStages) -> None:  # noqa: F811
    sums = "".join(json.dumps({"q": f"What is {n} + {n + 3}?", "a": str(2 * n + 3)}) + "\n" for n in range(2))
    measured = {}
    for over in ("text", "all"):
        made = await run_stages(STAGES.replace("OVER", over), sums, more_models=PUPIL, teacher={})
        numbers = made.stage("fitted").tally.numbers
        assert numbers == {"scored": 2.0, "scored_now": 2.0 if over == "text" else 0.0}
        assert len(made.traces("chosen")) == 2
        measured[over] = [trace.measures for trace in made.traces("fitted")]
    for text, every in zip(measured["text"], measured["all"], strict=True):
        assert text["pupil/tokens"] == every["pupil/tokens"]
        assert text["pupil/min_p"] >= every["pupil/min_p"]
        assert text["pupil/mean_surprisal"] < every["pupil/mean_surprisal"]  # the tags are the least likely tokens
