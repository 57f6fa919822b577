"""sufficient_prefix: the student judges, then goes on from there."""

from math import ceil, log2
from types import SimpleNamespace

import pytest

from tracefactory.pruners.sufficient_prefix import SufficientPrefix, judged
from tracefactory.pruning import Conclusion, PruneItem, Tools
from tracefactory.pruning.search import Test


def enough(needed: int):
    return lambda item: "[ENOUGH]" if f"q{needed} " in item.reasoning else "[NOT_ENOUGH]"


async def test_the_prefix_is_followed_by_the_students_own_reasoning(lab: SimpleNamespace) -> None:
    student = lab.Student(enough(3), Conclusion(text="So \\boxed{42}.", reasoning="Now multiply: 42."))
    items = [PruneItem.of(lab.numbered(20, name="a")), PruneItem.of(lab.numbered(9, name="b"))]
    results = await SufficientPrefix().prune(items, Tools(verify=lab.verify, student=student))
    for item, result in zip(items, results, strict=True):
        assert result.kept == (0, 1, 2, 3)
        assert result.reasoning == item.prefix(4) + "Now multiply: 42."
        assert result.answer_text == "So \\boxed{42}."
        assert result.calls <= ceil(log2(len(item.steps))) + 2
    (asked,) = student.extended
    assert [(item.id, item.temperature) for item in asked] == [("a", 0.6), ("b", 0.6)]
    assert {item.temperature for batch in student.batches for item in batch} == {0.0}


@pytest.mark.parametrize(("needed", "reason"), [(7, "no_shorter_prefix"), (99, "never_sufficient")])
async def test_no_continuation_is_sampled_without_a_shorter_prefix(
    lab: SimpleNamespace, needed: int, reason: str
) -> None:
    student = lab.Student(enough(needed))
    (result,) = await SufficientPrefix().prune(
        [PruneItem.of(lab.numbered(8))], Tools(verify=lab.verify, student=student)
    )
    assert (result.reason, student.extended) == (reason, [])


async def test_a_cut_trace_counts_its_judgements_and_its_continuation(lab: SimpleNamespace) -> None:
    student = lab.Student(enough(3), Conclusion(text="So \\boxed{42}.", reasoning="Now multiply: 42."))
    (result,) = await SufficientPrefix().prune(
        [PruneItem.of(lab.numbered(20))], Tools(verify=lab.verify, student=student)
    )
    assert (result.calls, result.samples) == (student.calls("t") + 1, student.calls("t") + 1)


async def test_a_failed_continuation_keeps_the_parent_and_counts_as_a_call(lab: SimpleNamespace) -> None:
    student = lab.Student(enough(1), Conclusion(error="server_error"))
    (result,) = await SufficientPrefix().prune(
        [PruneItem.of(lab.numbered(8))], Tools(verify=lab.verify, student=student)
    )
    assert (result.reason, result.detail) == ("student_error", "server_error")
    assert result.calls == student.calls("t") + 1


async def test_a_truncated_continuation_is_marked_as_unclosed(lab: SimpleNamespace) -> None:
    student = lab.Student(enough(1), Conclusion(text="", reasoning="and on and on", closed=False))
    (result,) = await SufficientPrefix().prune(
        [PruneItem.of(lab.numbered(8))], Tools(verify=lab.verify, student=student)
    )
    assert result.closed is False


@pytest.mark.parametrize(
    ("reply", "outcome"),
    [
        ("[ENOUGH]", Test.PASSED),
        ("[NOT_ENOUGH]", Test.FAILED),
        ("not enough", Test.FAILED),
        ("I first thought [NOT_ENOUGH], but: [ENOUGH]", Test.PASSED),
        ("", Test.FAILED),
        ("It has begun well.", Test.FAILED),
    ],
)
def test_the_last_judgement_of_a_reply_counts(reply: str, outcome: Test) -> None:
    assert judged(Conclusion(text=reply)) is outcome


def test_errors_are_no_judgement() -> None:
    assert judged(Conclusion(error="context_length")) is Test.TOO_LONG
    assert judged(Conclusion(error="server_error", text="[ENOUGH]")) is Test.BROKEN
