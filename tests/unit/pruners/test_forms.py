"""Diffs a person can read, two training forms, preference pairs and measures."""

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tracefactory.pruners import Pair, PruneItem, Unpaired, diff, loss_mask, masked, measures, pair_up, reverify
from tracefactory.pruners.base import Cost, keep, parent
from tracefactory.schema import Problem, Thinking, Trace

TEXT = "Take 6 rows of 7.\n\nThen 5 * 7 = 35.\n\nLet me check: 7 * 5 = 35.\n\nAnd 35 + 7 = 42.\n\nSo the answer is 42."


def item_of(lab: SimpleNamespace, text: str = TEXT, **rest) -> PruneItem:
    return PruneItem.of(lab.trace(text, **rest))


def test_a_diff_shows_what_was_cut_in_its_surroundings(lab: SimpleNamespace) -> None:
    item = PruneItem.of(lab.numbered(12))
    assert diff(item, keep(item, [*range(6), 8, 9, 10, 11], "The answer is 42.")) == (
        "t: 10 of 12 steps kept, 72 of 432 characters cut\n"
        "  ... steps 0-4 kept\n"
        "  [5 derivation] Then q5 follows from what we know.\n"
        "@@ cut steps 6-7: 2 derivation\n"
        "- [6 derivation] Then q6 follows from what we know.\n"
        "- [7 derivation] Then q7 follows from what we know.\n"
        "  [8 derivation] Then q8 follows from what we know.\n"
        "  ... steps 9-11 kept\n"
    )


def test_a_diff_shows_what_was_added_and_a_changed_answer(lab: SimpleNamespace) -> None:
    item = item_of(lab)
    shown = diff(item, keep(item, (0,), "It is 42.", added="Now add.\nAll of it."))
    assert "@@ added\n+ Now add.\n+ All of it.\n" in shown
    assert shown.endswith("@@ answer text\n- The answer is 42.\n+ It is 42.\n")


def test_a_diff_of_a_parent_says_why(lab: SimpleNamespace) -> None:
    item = item_of(lab)
    assert diff(item, parent(item, "never_valid")).startswith("t: 5 of 5 steps kept, 0 of ")
    assert "(never_valid)" in diff(item, parent(item, "never_valid"))


@given(st.sets(st.integers(0, 4)))
def test_the_masked_spans_are_what_was_cut(kept: set[int]) -> None:
    item = PruneItem.of(_trace())
    form = masked(item, keep(item, sorted(kept), "It is 42."))
    assert form.text == f"<think>\n{TEXT}\n</think>\n\nIt is 42."
    lost = "".join(form.text[start:end] for start, end in form.spans)
    assert lost == item.join(index for index in range(5) if index not in kept)
    assert all(before[1] < after[0] for before, after in zip(form.spans, form.spans[1:], strict=False))


def _trace() -> Trace:
    asked = Problem.make(question="Q", answer="42", verifier="test")
    return Trace(id="t", problem=asked, reasoning=TEXT, answer_text="The answer is 42.", thinking=Thinking.CLOSED)


def test_added_text_cannot_be_masked(lab: SimpleNamespace) -> None:
    item = item_of(lab)
    with pytest.raises(ValueError, match="nothing to mask"):
        masked(item, keep(item, (0,), "It is 42.", added="more"))


def test_the_loss_mask_follows_the_start_of_tokens() -> None:
    offsets = [(0, 2), (2, 5), (5, 9), (9, 12), (12, 12), (12, 15)]
    assert loss_mask(offsets, [(2, 6), (12, 14)]) == [1, 0, 0, 1, 0, 0]
    assert loss_mask(offsets, []) == [1] * 6


async def pairs(lab: SimpleNamespace, item: PruneItem, result):
    checked = await reverify([item], [result], lab.verify)
    return pair_up([item], checked, len)[0]


async def test_the_pruned_trace_is_preferred_to_the_raw_one(lab: SimpleNamespace) -> None:
    item = item_of(lab)
    pair = await pairs(lab, item, keep(item, (0, 1, 3, 4), item.trace.answer_text))
    assert isinstance(pair, Pair)
    assert pair.rejected == item.trace.text
    assert "Let me check" not in pair.chosen
    assert (pair.chosen_length, pair.rejected_length) == (len(pair.chosen), len(pair.rejected))
    assert pair.chosen_verdict.extracted == pair.rejected_verdict.extracted == "42"


async def test_without_two_right_answers_or_a_shorter_text_there_is_no_pair(lab: SimpleNamespace) -> None:
    right, wrong = item_of(lab), item_of(lab, answer_text="The answer is 41.")
    assert (await pairs(lab, right, parent(right, "never_valid"))) == Unpaired(
        id="t", problem_id=right.trace.problem_id, reason="never_valid"
    )
    assert (await pairs(lab, right, keep(right, (0,), "It is 41: the answer is 41."))).reason == "answer_lost"
    assert (await pairs(lab, wrong, keep(wrong, (0,), "The answer is 42."))).reason == "rejected_not_verified"
    long = keep(right, (0,), "The answer is 42.", added="and more " * 50)
    assert (await pairs(lab, right, long)).reason == "chosen_not_shorter"


def test_measures_count_in_the_given_tokens(lab: SimpleNamespace) -> None:
    item = item_of(lab)
    result = keep(item, (0, 1), "The answer is 42.", cost=Cost(calls=3, samples=6))
    assert measures(item, result, lambda text: len(text.split())) == {
        "prune_kept_share": 11 / 30,
        "prune_kept_steps": 2.0,
        "prune_tokens_saved": 19.0,
        "prune_calls": 3.0,
        "prune_samples": 6.0,
    }


def test_a_cut_ends_without_white_space_and_a_whole_stays_as_it_was(lab: SimpleNamespace) -> None:
    item = item_of(lab, TEXT + "\n")
    assert keep(item, (0, 1), "x").reasoning == "Take 6 rows of 7.\n\nThen 5 * 7 = 35."
    assert keep(item, range(5), "x").reasoning == TEXT + "\n"
