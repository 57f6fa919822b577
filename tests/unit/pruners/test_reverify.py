"""What was pruned must still teach the answer, or the parent stands with a reason."""

from types import SimpleNamespace

import pytest

from tracefactory.core.rows import Outcome
from tracefactory.pruners.after_answer import AfterAnswer
from tracefactory.pruners.verification_steps import VerificationSteps
from tracefactory.pruning import PruneItem, Tools, reverify
from tracefactory.pruning.base import Cost, keep, parent
from tracefactory.pruning.conclusion import shuffled
from tracefactory.pruning.dangling import dangling

TEXT = "Take 6 rows of 7.\n\nThen 5 * 7 = 35 eggs.\n\nAnd 35 + 7 = 42 eggs.\n\nLet me check the 42 again."


async def check(lab: SimpleNamespace, kept: tuple[int, ...], answer: str = "The answer is 42.", **rest):
    item = PruneItem.of(lab.trace(TEXT))
    (checked,) = await reverify([item], [keep(item, kept, answer, **rest)], lab.verify)
    return checked


async def test_a_coherent_correct_result_passes_with_its_verdict(lab: SimpleNamespace) -> None:
    checked = await check(lab, (0, 1, 2))
    assert checked.result.kept == (0, 1, 2)
    assert checked.verdict is not None
    assert checked.verdict.outcome is Outcome.CORRECT


@pytest.mark.parametrize(
    ("rest", "reason"),
    [
        ({"answer": "The answer is 41."}, "answer_lost"),
        ({"answer": "It depends."}, "answer_unverifiable"),
        ({"answer": "boom: the answer is 42."}, "verifier_error"),
        ({"answer": "  "}, "thinking_not_closed"),
        ({"closed": False}, "thinking_not_closed"),
        ({"added": "So </think> it is."}, "thinking_tags_inside"),
        ({"kept": ()}, "empty_reasoning"),
        ({"kept": (0, 3), "added": "As computed above, 5 * 7 = 35."}, "dangling_reference"),
    ],
)
async def test_the_parent_is_kept_if_the_result_is_incoherent_or_incorrect(
    lab: SimpleNamespace, rest: dict, reason: str
) -> None:
    checked = await check(lab, rest.pop("kept", (0, 1, 2)), cost=Cost(calls=4, samples=8), **rest)
    assert checked.result.reason == reason
    assert checked.result.reasoning == TEXT
    assert checked.result.answer_text == "The answer is 42."
    assert (checked.result.calls, checked.result.samples) == (4, 8)
    assert checked.verdict is None


@pytest.mark.parametrize(
    ("kept", "added", "holds"),
    [
        ((0,), "", True),
        ((0, 1), "", False),  # it would stop at a doubt
        ((0, 1), "No, 42 is right.", True),  # the student went on
        ((0, 1, 3), "", False),  # a doubt, and what settled it is gone
        ((0, 1, 2, 4), "", True),
        ((0, 1, 2, 3), "", False),  # idle talk is no end
        ((0, 1, 2, 3, 5), "", True),  # between other steps it does no harm
        ((0, 1, 2, 3, 4, 5), "", True),  # as the parent itself ended
    ],
)
async def test_a_result_that_leaves_a_step_open_is_refused(
    lab: SimpleNamespace, kept: tuple[int, ...], added: str, holds: bool
) -> None:
    steps = ["Take 6 rows.", "Wait, is it 7?", "No: it is 6.", "Okay, let's see.", "So 6 * 7 = 42.", "Hmm, is it?"]
    item = item_of(lab, steps)
    (checked,) = await reverify([item], [keep(item, kept, "The answer is 42.", added=added)], lab.verify)
    assert checked.result.reason == (None if holds else "left_open")


async def test_parents_and_texts_already_refused_are_not_verified_again(lab: SimpleNamespace) -> None:
    items = [PruneItem.of(lab.trace(TEXT, name=name)) for name in "abc"]
    results = [
        parent(items[0], "never_valid"),
        keep(items[1], (), "The answer is 42."),
        keep(items[2], (0,), "42 is it"),
    ]
    checked = await reverify(items, results, lab.verify)
    assert lab.verify.batches == [1]
    assert [one.result.reason for one in checked] == ["never_valid", "empty_reasoning", "answer_unverifiable"]


STEPS = {
    "value": ["Take 6 rows.", "Each has 17 eggs.", "So x is small.", "As computed above, 17 eggs are in each."],
    "value_zh": ["共有6排。", "每排有17个鸡蛋。", "所以很多。", "如上所述，每排17个。"],
    "equation": ["Take 6 rows.", "x + y = 5 (1)", "Now go on.", "From (1), y = 5 - x."],
    "tag": ["Take 6 rows.", "\\[ x + y = 5 \\tag{3} \\]", "Now go on.", "By equation (3) we get y."],
    "step": ["Take 6 rows.", "Step 2: multiply by 7.", "Now go on.", "The result of Step 2 is needed now."],
    "step_first": ["Take 6 rows.", "Step 2: multiply by 7.", "Now go on.", "Step 2 gave what is needed."],
    "case_zh": ["共有6排。", "情况1：x为偶数。", "继续看下去。", "由情况1可知y为奇数。"],
    "gap": ["Take 6 rows.", "Now go on.", "Each row is long.", "As shown above, it must be so."],
    "zh_gap": ["共有6排。", "继续看下去。", "每排都很长。", "由上述推导可知结论成立。"],
    "found": ["Take 6 rows.", "We get 19 eggs.", "Now go on.", "Since we found 19 eggs, y is 2."],
    "end": ["Take 6 rows.", "This gives x + y = 5 (4).", "Now go on.", "Use equation (4) for y."],
    "before": ["Take 6 rows.", "We found 19 earlier eggs.", "Now go on.", "Earlier we found 19, so y is 2."],
}
LOST = {"gap": (0, 1, 3), "zh_gap": (0, 1, 3)}


def item_of(lab: SimpleNamespace, steps: list[str]) -> PruneItem:
    item = PruneItem.of(lab.trace("\n\n".join(steps)))
    assert len(item.steps) == len(steps)
    return item


@pytest.mark.parametrize("name", list(STEPS))
def test_a_reference_to_what_was_cut_is_found(lab: SimpleNamespace, name: str) -> None:
    item = item_of(lab, STEPS[name])
    fault = dangling(item, keep(item, LOST.get(name, (0, 2, 3)), "The answer is 42."))
    assert fault is not None
    assert STEPS[name][3].split()[0] in fault


@pytest.mark.parametrize("name", list(STEPS))
def test_nothing_dangles_when_nothing_was_cut_or_only_what_follows(lab: SimpleNamespace, name: str) -> None:
    item = item_of(lab, [*STEPS[name], "Some more words."])
    assert dangling(item, keep(item, range(5), "The answer is 42.")) is None
    assert dangling(item, keep(item, range(4), "The answer is 42.")) is None


@pytest.mark.parametrize(
    "last",
    [
        "As computed above, the 6 rows stay.",
        "The point lies above the line y = 2.",
        "Values above 17 are out.",
        "Step 2: add them up.",
        "**Case 1:** all are even.",
        "f(1) is in (1, 2).",
        "So x is 5.",
        "Let us look at the equation x N = 2 again.",
        "Alternatively, step 2: add them up.",
        "Second try: Step 2: add them up.",
        "Whether the point is above or below the line is open.",
        "This is the product obtained earlier.",
    ],
)
def test_references_to_kept_text_and_words_for_places_are_accepted(lab: SimpleNamespace, last: str) -> None:
    item = item_of(lab, ["Take 6 rows.", "Step 2 has 17 eggs in case 1.", "Now go on.", last])
    assert dangling(item, keep(item, (0, 2, 3), "The answer is 42.")) is None


def test_the_question_counts_as_above(lab: SimpleNamespace) -> None:
    steps = ["Let us see.", "There are 17 eggs.", "Now go on.", "As noted above, there are 17."]
    item = PruneItem.of(lab.trace("\n\n".join(steps), question="What do 17 eggs cost?"))
    assert dangling(item, keep(item, (0, 2, 3), "The answer is 42.")) is None


def test_a_rewrite_that_opens_by_pointing_back_dangles(lab: SimpleNamespace) -> None:
    item = item_of(lab, ["Take rows.", "Each is long."])
    assert dangling(item, keep(item, (), "The answer is 42.", added="As we computed above, it is so.")) is not None
    assert dangling(item, keep(item, (), "The answer is 42.", added="Rows are long. As we saw, it is so.")) is None


def test_the_answer_text_may_not_point_at_what_was_cut(lab: SimpleNamespace) -> None:
    item = item_of(lab, ["Take 6 rows.", "They hold 99 eggs.", "Now go on."])
    assert dangling(item, keep(item, (0, 2), "With the 99 eggs found above, the answer is 42.")) is not None
    assert dangling(item, keep(item, (0, 1), "With the 99 eggs found above, the answer is 42.")) is None


DERIVED = "Take 6 rows of 7.\n\nThen 5 * 7 = 35 eggs.\n\nAnd 35 + 7 = 42 eggs.\n\nSo the answer is 42."
LONGER = f"{DERIVED}\n\nNow to sell them.\n\nIn 3 days they are gone."


async def follows(lab: SimpleNamespace, reasoning: str, **rest):
    """Check a reasoning from which the answer is said to follow, with the answer text of the parent."""
    item = PruneItem.of(lab.trace(LONGER))
    given = {"stated": "explicit", "stated_last": True, **rest}
    (checked,) = await reverify([item], [keep(item, (), "The answer is 42.", added=reasoning, **given)], lab.verify)
    return checked


async def test_the_answer_is_read_again_from_the_pruned_reasoning(lab: SimpleNamespace) -> None:
    checked = await follows(lab, DERIVED)
    assert (checked.result.reason, checked.states) == (None, "right")


@pytest.mark.parametrize(
    ("reasoning", "reason"),
    [
        ("", "empty_reasoning"),
        (" \n\n ", "empty_reasoning"),
        ("Bananas are yellow. They grow in bunches.", "reasoning_states_no_answer"),
        ("Lorem ipsum dolor sit amet 42.", "reasoning_states_no_answer"),
        ("So the answer is 41.", "reasoning_states_another_answer"),
        ("So the answer is 42.\n\nNo, the answer is 41.", "reasoning_states_another_answer"),
        ("The answer is 42 perhaps.", "reasoning_states_no_answer"),
        ("So the answer is boom 42.", "verifier_error"),
        ("So the answer is 42.\n\nTake 6 rows of 7.", "reasoning_goes_on_after_answer"),
        (shuffled(DERIVED, "b"), "reasoning_goes_on_after_answer"),
        ("Take 6 rows of 7, which is 6 * 7 =", "reasoning_states_no_answer"),
    ],
)
async def test_a_reasoning_that_does_not_lead_to_the_answer_is_refused(
    lab: SimpleNamespace, reasoning: str, reason: str
) -> None:
    checked = await follows(lab, reasoning)
    assert checked.result.reason == reason
    assert checked.result.reasoning == LONGER
    assert checked.verdict is None


async def test_a_refusal_quotes_what_the_reasoning_states(lab: SimpleNamespace) -> None:
    checked = await follows(lab, f"{DERIVED.removesuffix('42.')}41.")
    assert checked.result.reason == "reasoning_states_another_answer"
    assert checked.result.detail is not None
    assert "the answer is 41" in checked.result.detail


async def test_every_order_of_the_sentences_but_those_that_end_in_the_answer_is_refused(lab: SimpleNamespace) -> None:
    passed = 0
    for seed in range(40):
        mixed = shuffled(DERIVED, str(seed))
        accepted = (await follows(lab, mixed)).result.reason is None
        assert accepted == mixed.endswith("So the answer is 42.")
        passed += accepted
    assert 0 < passed < 20


async def test_a_reasoning_need_not_state_the_answer_but_states_no_other(lab: SimpleNamespace) -> None:
    """Beginnings from which a student concludes, and steps that were chosen one by one."""
    for reasoning, reason, states in (
        ("Take 6 rows of 7.", None, "none"),
        (DERIVED, None, "right"),
        ("So the answer is 41.", "reasoning_states_another_answer", "wrong"),
        ("So the answer is 41.\n\nWait, that is wrong. I forgot a row of 7.", None, "none"),
        ("Write it as \\boxed{m + n}.", None, "undecided"),
    ):
        checked = await follows(lab, reasoning, stated=None, stated_last=False)
        assert (checked.result.reason, checked.states) == (reason, states)


@pytest.mark.parametrize("pruner", [AfterAnswer(), AfterAnswer(evidence="result"), VerificationSteps()])
async def test_pruners_that_cut_because_of_a_statement_leave_it(lab: SimpleNamespace, pruner) -> None:
    text = DERIVED.replace("answer is", "total is") if getattr(pruner, "evidence", "") == "result" else DERIVED
    item = PruneItem.of(lab.trace(f"{text}\n\nLet me check: 42 / 6 = 7.\n\nSo the answer is 42.\n\nDone."))
    (result,) = await pruner.prune([item], Tools(verify=lab.verify))
    assert result.stated == pruner.evidence
    (checked,) = await reverify([item], [result], lab.verify)
    assert (checked.result.reason, checked.states) == (None, "right")


@pytest.mark.parametrize("end", ["So we need 35 + 7.", "So it is 35 + 7 =", "Then 84/2."])
async def test_no_cut_leaves_a_calculation_without_its_result(lab: SimpleNamespace, end: str) -> None:
    item = item_of(lab, ["Take 6 rows of 7.", end, "It is 42.", "So the answer is 42."])
    (checked,) = await reverify([item], [keep(item, (0, 1), "The answer is 42.")], lab.verify)
    assert checked.result.reason == "ends_before_result"
    (anywhere,) = await reverify([item], [keep(item, (0, 1), "The answer is 42.", stops="any")], lab.verify)
    assert anywhere.result.reason is None  # `stops: any` is the paper's search
    (whole,) = await reverify([item], [keep(item, (0, 1, 2, 3), "The answer is 42.")], lab.verify)
    assert whole.result.reason is None


async def test_a_parent_that_ends_in_a_calculation_may_keep_its_end(lab: SimpleNamespace) -> None:
    item = item_of(lab, ["Take 6 rows of 7.", "Let us see.", "So we need 35 + 7."])
    (checked,) = await reverify([item], [keep(item, (0, 2), "The answer is 42.")], lab.verify)
    assert checked.result.reason is None
