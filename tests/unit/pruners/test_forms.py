"""Diffs a person can read, two training forms, preference pairs and measures."""

from collections.abc import Callable
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tracefactory.core.errors import RunError
from tracefactory.core.rows import Outcome, Parent, ParentRole, Problem, Thinking, Trace, Verdict
from tracefactory.pruning import (
    LengthCounter,
    Pair,
    PruneItem,
    PruneResult,
    Unpaired,
    derive,
    diff,
    loss_mask,
    masked,
    measures,
    pair,
    read_derivation,
    restored,
)
from tracefactory.pruning.base import Cost, keep, parent
from tracefactory.text.steps import Granularity

TEXT = "Take 6 rows of 7.\n\nThen 5 * 7 = 35.\n\nLet me check: 7 * 5 = 35.\n\nAnd 35 + 7 = 42.\n\nSo the answer is 42."

PIECES = ["Take 6 rows.", " \n\n", "\n\n   \n\n", "Wait, is it 7?\n\n", "So the answer is 42.\n", "$$x = 1$$\n\n", "  "]


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


def test_a_diff_of_a_kept_parent_has_the_reason(lab: SimpleNamespace) -> None:
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


def _trace(text: str = TEXT) -> Trace:
    asked = Problem.make(question="Q", answer="42", verifier="test")
    return Trace(id="t", problem=asked, reasoning=text, answer_text="The answer is 42.", thinking=Thinking.CLOSED)


def test_added_text_cannot_be_masked(lab: SimpleNamespace) -> None:
    item = item_of(lab)
    with pytest.raises(ValueError, match="nothing to mask"):
        masked(item, keep(item, (0,), "It is 42.", added="more"))


def test_the_loss_mask_follows_the_start_of_tokens() -> None:
    offsets = [(0, 2), (2, 5), (5, 9), (9, 12), (12, 12), (12, 15)]
    assert loss_mask(offsets, [(2, 6), (12, 14)]) == [1, 0, 0, 1, 0, 0]
    assert loss_mask(offsets, []) == [1] * 6


def row(item: PruneItem, result: PruneResult, verdict: Verdict | None = None) -> Trace:
    """Make the row a prune stage would make of a result."""
    counter = LengthCounter.of(item.trace, lambda text: len(text.split()))
    derivation = derive(item, result, pruner="p", granularity=Granularity.STEP, counter=counter)
    told = item.trace.model_copy(update={"derivation": derivation.model_dump_json(exclude_defaults=True)})
    if result.reason is not None:
        return told
    parents = (Parent(id=item.trace.id, role=ParentRole.PRUNED),)
    made = {"id": "made", "parents": parents, "reasoning": result.reasoning, "answer_text": result.answer_text}
    return told.model_copy(update={**made, "thinking": Thinking.CLOSED, "verdict": verdict})


RIGHT = Verdict(outcome=Outcome.CORRECT, extracted="42", method="t", verifier="t", version="1", seconds=0.5)


def test_the_pruned_trace_is_preferred_to_the_raw_one(lab: SimpleNamespace) -> None:
    item = item_of(lab)
    found = pair(row(item, keep(item, (0, 1, 3, 4), item.trace.answer_text), RIGHT))
    assert isinstance(found, Pair)
    assert found.rejected == item.trace.text
    assert "Let me check" not in found.chosen
    assert (found.chosen_length, found.rejected_length) == (len(found.chosen.split()), len(found.rejected.split()))
    assert found.unit == "student_tokens"
    assert found.chosen_verdict.extracted == found.rejected_verdict.extracted == "42"


def test_without_two_right_answers_or_a_shorter_text_there_is_no_pair(lab: SimpleNamespace) -> None:
    right, wrong = item_of(lab), item_of(lab, answer_text="The answer is 41.")

    def reason(item: PruneItem, result: PruneResult, verdict: Verdict | None = RIGHT) -> str:
        found = pair(row(item, result, verdict))
        assert isinstance(found, Unpaired)
        return found.reason

    assert reason(right, parent(right, "never_valid")) == "never_valid"
    assert reason(right, keep(right, (0,), "The answer is 42."), None) == "chosen_not_verified"
    assert reason(wrong, keep(wrong, (0,), "The answer is 42.")) == "rejected_not_verified"
    assert reason(right, keep(right, (0,), "The answer is 42.", added="and more " * 50)) == "chosen_not_shorter"
    assert pair(right.trace) == Unpaired(
        reason="not_pruned", detail="the trace was not pruned, so there is no preference"
    )


@settings(deadline=None)  # the first example may pay for what is compiled once
@given(st.lists(st.sampled_from(PIECES), max_size=12), st.sets(st.integers(0, 11)), st.sampled_from(["", "More."]))
def test_every_pruned_row_gives_its_parent_back(pieces: list[str], chosen: set[int], added: str) -> None:
    item = PruneItem.of(_trace("".join(pieces)))
    result = keep(item, [step.index for step in item.steps if step.index in chosen], "It is 42.", added=added)
    found = restored(row(item, result, RIGHT))
    assert found is not None
    back, again = found
    assert back == item
    assert (again.kept, again.reasoning, again.added) == (result.kept, result.reasoning, result.added)


def test_a_row_pruned_twice_gives_back_both_parents(lab: SimpleNamespace) -> None:
    raw = item_of(lab)
    once = row(raw, keep(raw, (0, 1, 3, 4), "The answer is 42."), raw.trace.verdict)
    item = PruneItem.of(once)
    twice = row(item, keep(item, (0, 2), "It is 42."), RIGHT)
    found = restored(twice)
    assert found is not None
    assert found[0].trace.reasoning == once.reasoning
    first = restored(found[0].trace)
    assert first is not None
    assert first[0].trace.reasoning == TEXT


def test_a_fallback_of_a_pruned_row_keeps_how_it_was_pruned(lab: SimpleNamespace) -> None:
    raw = item_of(lab)
    once = row(raw, keep(raw, (0, 1), "The answer is 42."), raw.trace.verdict)
    stood = row(PruneItem.of(once), parent(PruneItem.of(once), "answer_lost"))
    found, derivation = restored(stood), read_derivation(stood)
    assert derivation is not None
    assert derivation.fallback == "answer_lost"
    assert found is not None
    assert found[0].trace.reasoning == TEXT
    assert isinstance(pair(stood), Pair)


def test_a_row_pruned_with_another_segmentation_is_refused(lab: SimpleNamespace) -> None:
    item = item_of(lab)
    made = row(item, keep(item, (0, 1), "The answer is 42."), RIGHT)
    other = made.model_copy(update={"derivation": made.derivation.replace('"steps":5', '"steps":6')})
    with pytest.raises(RunError, match="other rules for steps"):
        restored(other)


@pytest.mark.parametrize(
    ("tokens", "tokenizer", "name", "saved"),
    [
        (0, lambda text: len(text.split()), "prune_tokens_saved", 19.0),
        (0, None, "prune_characters_saved", 67.0),
        (14, None, "prune_tokens_saved_estimated", 7.0),
    ],
)
def test_the_measure_of_savings_has_the_name_of_its_unit(
    lab: SimpleNamespace, tokens: int, tokenizer: Callable[[str], int] | None, name: str, saved: float
) -> None:
    item = item_of(lab)
    trace = item.trace.model_copy(update={"completion_tokens": tokens})
    result = keep(item, (0, 1), "The answer is 42.", cost=Cost(calls=3, samples=6))
    assert measures(item, result, LengthCounter.of(trace, tokenizer)) == {
        "prune_kept_share": 35 / 102,
        "prune_kept_steps": 2.0,
        name: saved,
        "prune_calls": 3.0,
        "prune_samples": 6.0,
    }


def test_a_cut_ends_without_white_space_and_a_whole_stays_as_it_was(lab: SimpleNamespace) -> None:
    item = item_of(lab, TEXT + "\n")
    assert keep(item, (0, 1), "x").reasoning == "Take 6 rows of 7.\n\nThen 5 * 7 = 35."
    assert keep(item, range(5), "x").reasoning == TEXT + "\n"
