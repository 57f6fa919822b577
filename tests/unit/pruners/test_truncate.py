"""`truncate`: the control of every claim about pruning."""

from types import SimpleNamespace

import pytest

from tracefactory.pruners.binary_cut import BinaryCut
from tracefactory.pruners.truncate import Truncate
from tracefactory.pruning import Conclusion, PruneItem, Tools, reverify

OPEN = "Take 6 rows of 7.\n\nWait, is that right?\n\nYes: 6 * 7 = 42.\n\nSo the answer is 42."


async def prune(lab: SimpleNamespace, pruner, items, student, **tools):
    verify = lab.verify
    results = await pruner.prune(items, Tools(verify, student, **tools))
    return [one.result for one in await reverify(items, results, verify)]


@pytest.mark.parametrize(("share", "kept"), [(0.01, 1), (0.25, 2), (0.5, 5), (0.99, 9)])
async def test_whole_steps_within_the_share_are_kept(lab: SimpleNamespace, share: float, kept: int) -> None:
    items = [PruneItem.of(lab.numbered(10))]
    student = lab.Student(lambda item: "The answer is 42.")
    (result,) = await prune(lab, Truncate(share=share), items, student, count=lambda text: 1)
    assert (result.reason, len(result.kept), result.samples) == (None, kept, 1)
    assert student.batches[0][0].reasoning == items[0].prefix(kept)


async def test_a_cut_may_be_anywhere_and_the_student_must_conclude(lab: SimpleNamespace) -> None:
    items = [PruneItem.of(lab.trace(OPEN))]
    (kept,) = await prune(lab, Truncate(share=0.6), items, lab.Student(lambda item: "I say \\boxed{42}."))
    assert kept.reason is None
    assert kept.reasoning.endswith("is that right?")
    assert kept.answer_text == "I say \\boxed{42}."
    (wrong,) = await prune(lab, Truncate(), items, lab.Student(lambda item: "I say \\boxed{41}."))
    assert wrong.reason == "not_concluded"
    (failed,) = await prune(lab, Truncate(), items, lab.Student(lambda item: Conclusion(error="refused")))
    assert failed.reason == "student_error"


async def test_traces_that_cannot_be_cut_are_kept_without_a_request(lab: SimpleNamespace) -> None:
    student = lab.Student(lambda item: "The answer is 42.")
    items = [PruneItem.of(lab.trace("One step.", name="a")), PruneItem.of(lab.trace("", name="b"))]
    results = await prune(lab, Truncate(), items, student)
    assert [one.reason for one in results] == ["one_step", "no_reasoning"]
    assert student.batches == []
    assert [Truncate(samples=3).asks_at_most(item).answers for item in items] == [0, 0]


async def test_the_search_of_the_paper_may_stop_after_a_doubt(lab: SimpleNamespace) -> None:
    items = [PruneItem.of(lab.trace(OPEN))]
    student = lab.Student(lambda item: "The answer is 42." if "Wait" in item.reasoning else "I cannot say.")
    (closed,) = await prune(lab, BinaryCut(), items, student)
    assert closed.reasoning.endswith("6 * 7 = 42.")
    (anywhere,) = await prune(lab, BinaryCut(stops="any"), items, student)
    assert anywhere.reasoning.endswith("is that right?")
    assert (closed.reason, anywhere.reason) == (None, None)
