"""Binary search in lockstep: bounded, and what it returns was tested."""

from collections.abc import Sequence
from math import ceil, log2

from hypothesis import given, settings
from hypothesis import strategies as st

from tracefactory.pruning.search import Test, shortest_prefixes


async def run(answers: list[list[Test]]) -> tuple[list[int | None], list[int], int]:
    rounds = 0

    async def ask(asking: Sequence[tuple[int, int]]) -> list[Test]:
        nonlocal rounds
        rounds += 1
        assert len({number for number, _ in asking}) == len(asking)
        return [answers[number][count - 1] for number, count in asking]

    searches = await shortest_prefixes([len(row) for row in answers], ask)
    return [search.best for search in searches], [search.calls for search in searches], rounds


OUTCOMES = st.sampled_from([Test.PASSED, Test.FAILED, Test.TOO_LONG])


@given(st.lists(st.lists(OUTCOMES, min_size=1, max_size=200), min_size=1, max_size=8))
@settings(max_examples=300, deadline=None)
async def test_any_answers_stay_within_the_bound_and_only_tested_prefixes_win(answers: list[list[Test]]) -> None:
    best, calls, rounds = await run(answers)
    for row, found, made in zip(answers, best, calls, strict=True):
        assert made <= ceil(log2(len(row))) + 1
        assert found is None or row[found - 1] is Test.PASSED
    assert rounds == max(calls)


@given(st.integers(1, 3_000), st.data())
@settings(max_examples=200, deadline=None)
async def test_monotone_answers_give_the_shortest_prefix(length: int, data: st.DataObject) -> None:
    first = data.draw(st.integers(1, length + 1))
    row = [Test.PASSED if count >= first else Test.FAILED for count in range(1, length + 1)]
    (best,), _, _ = await run([row])
    assert best == (first if first <= length else None)


async def test_a_window_too_small_for_the_trace_is_searched_below_it() -> None:
    row = [Test.FAILED] * 5 + [Test.PASSED] * 10 + [Test.TOO_LONG] * 85
    (best,), (calls,), _ = await run([row])
    assert best == 6
    assert calls <= 8


async def test_a_broken_answer_ends_one_search_and_no_other() -> None:
    best, calls, _ = await run([[Test.BROKEN] * 64, [Test.PASSED] * 64])
    assert best == [None, 1]
    assert calls == [1, 6]
