"""binary_cut: the student's own answers decide, in few and batched calls."""

import re
from math import ceil, log2
from types import SimpleNamespace

import pytest
from pydantic import ValidationError

from tracefactory.core.errors import UserError
from tracefactory.core.rows import Thinking
from tracefactory.pruners.binary_cut import BinaryCut
from tracefactory.pruning import PRUNERS, ConcludeItem, Conclusion, PruneItem, Tools

RIGHT, WRONG = "The answer is 42.", "The answer is 41."


def knows(needed: int):
    """A student that is right once it has seen step q<needed>."""
    return lambda item: RIGHT if f"q{needed} " in item.reasoning else WRONG


def tools(lab: SimpleNamespace, reply) -> Tools:
    return Tools(verify=lab.verify, student=lab.Student(reply))


async def test_the_shortest_sufficient_prefix_is_kept_with_the_students_conclusion(lab: SimpleNamespace) -> None:
    given = tools(lab, knows(12))
    (result,) = await BinaryCut().prune([PruneItem.of(lab.numbered(40))], given)
    assert result.kept == tuple(range(13))
    assert result.reasoning.endswith("q12 follows from what we know.")
    assert (result.answer_text, result.reason, result.added) == (RIGHT, None, "")


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 8, 9, 100, 129])
@pytest.mark.parametrize("needed", [0, 3, 1_000])
async def test_calls_stay_within_the_bound(lab: SimpleNamespace, steps: int, needed: int) -> None:
    given = tools(lab, knows(needed))
    (result,) = await BinaryCut().prune([PruneItem.of(lab.numbered(steps))], given)
    assert given.student.calls("t") == result.calls <= ceil(log2(steps)) + 1
    assert BinaryCut(samples=3, valid=1).asks_at_most(PruneItem.of(lab.numbered(steps))).answers == 3 * (
        ceil(log2(steps)) + 1
    )


async def test_many_traces_share_the_rounds(lab: SimpleNamespace) -> None:
    items = [PruneItem.of(lab.numbered(10 + number, name=f"t{number}")) for number in range(30)]
    given = tools(lab, knows(5))
    results = await BinaryCut().prune(items, given)
    assert [result.id for result in results] == [item.trace.id for item in items]
    assert all(result.kept == tuple(range(6)) for result in results)
    assert len(given.student.batches) <= ceil(log2(39)) + 1
    assert len(given.student.batches[0]) == 30
    assert len(lab.verify.batches) == len(given.student.batches)


async def test_a_batch_gives_what_each_trace_alone_gives(lab: SimpleNamespace) -> None:
    items = [PruneItem.of(lab.numbered(3 + number, name=f"t{number}")) for number in range(12)]
    together = await BinaryCut().prune(items, tools(lab, knows(4)))
    alone = [(await BinaryCut().prune([item], tools(lab, knows(4))))[0] for item in items]
    assert together == alone


async def test_validity_that_is_not_monotone_still_returns_a_tested_prefix(lab: SimpleNamespace) -> None:
    def odd(item: ConcludeItem) -> str:
        return RIGHT if len(re.findall(r"q\d+", item.reasoning)) % 2 == 1 else WRONG

    given = tools(lab, odd)
    (result,) = await BinaryCut().prune([PruneItem.of(lab.numbered(50))], given)
    assert result.reason is None
    assert len(result.kept) % 2 == 1


async def test_the_parent_is_kept_if_the_student_is_never_correct(lab: SimpleNamespace) -> None:
    parent = lab.numbered(20)
    (result,) = await BinaryCut().prune([PruneItem.of(parent)], tools(lab, lambda _: WRONG))
    assert (result.reason, result.reasoning, result.answer_text) == (
        "never_valid",
        parent.reasoning,
        parent.answer_text,
    )
    assert len(result.kept) == 20


async def test_the_parent_is_kept_if_no_shorter_prefix_is_sufficient(lab: SimpleNamespace) -> None:
    (result,) = await BinaryCut().prune([PruneItem.of(lab.numbered(20))], tools(lab, knows(19)))
    assert result.reason == "no_shorter_prefix"


async def test_a_prefix_never_stops_at_a_doubt(lab: SimpleNamespace) -> None:
    steps = ["Take 6 rows.", "Wait, is it 6 or 7?", "It is 6, and 6 * 7 = 42.", "Let me double-check.", "It is 42."]
    item = PruneItem.of(lab.trace("\n\n".join(steps)))
    assert len(item.steps) == 5
    for seen, kept in (("Take", 1), ("Wait", 3), ("42", 3), ("double", 5)):
        given = tools(lab, lambda asked, seen=seen: RIGHT if seen in asked.reasoning else WRONG)
        (result,) = await BinaryCut().prune([item], given)
        assert len(result.kept) == kept
        assert result.reason == ("no_shorter_prefix" if kept == 5 else None)
        asked = {one.reasoning.strip() for batch in given.student.batches for one in batch}
        assert not any(text.endswith(("7?", "check.")) for text in asked)
        assert result.calls <= BinaryCut().asks_at_most(item).answers == 3


async def test_k_of_m_samples_must_be_right(lab: SimpleNamespace) -> None:
    def often(item: ConcludeItem) -> str:
        seen = len(re.findall(r"q\d+", item.reasoning))
        return f"{RIGHT} ({item.sample})" if item.sample < seen // 4 else WRONG

    given = tools(lab, often)
    (result,) = await BinaryCut(samples=4, valid=3).prune([PruneItem.of(lab.numbered(32))], given)
    assert len(result.kept) == 12
    assert result.answer_text == f"{RIGHT} (0)"
    assert result.samples == 4 * result.calls
    first = given.student.batches[0]
    assert [(item.sample, item.temperature) for item in first] == [(0, 0.6), (1, 0.6), (2, 0.6), (3, 0.6)]


async def test_one_sample_is_greedy(lab: SimpleNamespace) -> None:
    given = tools(lab, knows(1))
    await BinaryCut().prune([PruneItem.of(lab.numbered(4))], given)
    assert {item.temperature for batch in given.student.batches for item in batch} == {0.0}


async def test_the_original_conclusion_is_kept_where_there_is_one(lab: SimpleNamespace) -> None:
    closed = lab.numbered(8).model_copy(update={"answer_text": "My own: the answer is 42.", "id": "closed"})
    opened = lab.numbered(8).model_copy(update={"answer_text": "", "thinking": Thinking.OPEN, "id": "open"})
    results = await BinaryCut(conclusion="original").prune(
        [PruneItem.of(closed), PruneItem.of(opened)], tools(lab, knows(2))
    )
    assert [result.answer_text for result in results] == ["My own: the answer is 42.", RIGHT]


async def test_shorter_prefixes_are_tested_after_a_prompt_that_is_too_long(lab: SimpleNamespace) -> None:
    def small(item: ConcludeItem) -> str | Conclusion:
        if len(re.findall(r"q\d+", item.reasoning)) > 20:
            return Conclusion(error="context_length")
        return knows(9)(item)

    (result,) = await BinaryCut().prune([PruneItem.of(lab.numbered(100))], tools(lab, small))
    assert result.kept == tuple(range(10))


async def test_a_truncated_answer_does_not_count(lab: SimpleNamespace) -> None:
    def rambles(item: ConcludeItem) -> str | Conclusion:
        long = len(re.findall(r"q\d+", item.reasoning)) < 6
        return Conclusion(text=RIGHT, closed=False) if long else RIGHT

    (result,) = await BinaryCut().prune([PruneItem.of(lab.numbered(16))], tools(lab, rambles))
    assert result.kept == tuple(range(6))


async def test_a_failed_request_is_not_a_wrong_answer(lab: SimpleNamespace) -> None:
    def fails(item: ConcludeItem) -> str | Conclusion:
        return Conclusion(error="server_error") if item.id == "bad" else knows(1)(item)

    items = [PruneItem.of(lab.numbered(8, name="bad")), PruneItem.of(lab.numbered(8, name="good"))]
    bad, good = await BinaryCut().prune(items, tools(lab, fails))
    assert (bad.reason, bad.calls) == ("student_error", 1)
    assert bad.detail == "server_error"
    assert good.kept == (0, 1)


async def test_a_verifier_that_fails_proves_nothing_and_is_counted(lab: SimpleNamespace) -> None:
    def unsure(item: ConcludeItem) -> str:
        return knows(6)(item) if "q6 " in item.reasoning else "boom: the answer is 42."

    (result,) = await BinaryCut().prune([PruneItem.of(lab.numbered(16))], tools(lab, unsure))
    assert result.kept == tuple(range(7))
    assert result.unsure > 0


async def test_a_trace_without_reasoning_is_kept(lab: SimpleNamespace) -> None:
    given = tools(lab, knows(0))
    (result,) = await BinaryCut().prune([PruneItem.of(lab.trace("", thinking=Thinking.NONE))], given)
    assert (result.reason, result.calls, given.student.batches) == ("no_reasoning", 0, [])


async def test_a_missing_student_is_refused(lab: SimpleNamespace) -> None:
    with pytest.raises(UserError, match="binary_cut needs a student"):
        await BinaryCut().prune([PruneItem.of(lab.numbered(3))], Tools(verify=lab.verify))


def test_impossible_votes_are_refused() -> None:
    with pytest.raises(ValidationError, match="2 of 1"):
        BinaryCut(samples=1, valid=2)


def test_all_pruners_are_registered_and_an_unknown_one_is_named() -> None:
    assert list(PRUNERS) == [
        "after_answer",
        "answer_likelihood",
        "binary_cut",
        "low_information",
        "rewrite",
        "sufficient_prefix",
        "truncate",
        "verification_steps",
    ]
    with pytest.raises(UserError, match="did you mean 'binary_cut'"):
        PRUNERS.get("binary_cuts")
