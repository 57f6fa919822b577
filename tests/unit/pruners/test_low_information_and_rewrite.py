"""low_information and rewrite: whole steps within a budget, and a text that must go where it was sent."""

from math import nan
from types import SimpleNamespace

import pytest
from pydantic import ValidationError

from tracefactory.core.errors import UserError
from tracefactory.core.rows import Thinking
from tracefactory.pruners.low_information import LowInformation
from tracefactory.pruners.rewrite import Rewrite
from tracefactory.pruning import Conclusion, PruneItem, StepScores, Tools


def scored(lab: SimpleNamespace, tokens: list[int], values: list[float], text: str | None = None) -> PruneItem:
    trace = lab.trace(text) if text else lab.numbered(len(tokens))
    flat = (0.0,) * len(tokens)
    scores = StepScores(tokens=tuple(tokens), surprisal=tuple(values), first_surprisal=flat, entropy=flat)
    return PruneItem.of(trace, scores=scores)


async def kept(lab: SimpleNamespace, item: PruneItem, **params) -> tuple[int, ...]:
    (result,) = await LowInformation(**params).prune([item], Tools(verify=lab.verify))
    return result.kept


async def test_the_least_informative_steps_go_first_within_the_budget(lab: SimpleNamespace) -> None:
    item = scored(lab, [10] * 6, [0.1, 3.0, 0.5, 2.0, 0.4, 1.0])
    assert await kept(lab, item, drop=0.34) == (0, 1, 3, 5)
    assert await kept(lab, item, drop=0.2) == (0, 1, 2, 3, 5)


async def test_a_step_too_large_for_the_budget_is_passed_over(lab: SimpleNamespace) -> None:
    assert await kept(lab, scored(lab, [10, 60, 10, 20], [1, 0.1, 0.9, 0.5]), drop=0.2) == (0, 1, 2)


async def test_of_steps_with_equal_scores_the_later_is_dropped(lab: SimpleNamespace) -> None:
    assert await kept(lab, scored(lab, [10] * 4, [1, 1, 1, 1]), drop=0.25) == (0, 1, 2)


async def test_steps_are_dropped_by_the_chosen_score(lab: SimpleNamespace) -> None:
    scores = StepScores(tokens=(5, 5, 5), surprisal=(1, 0.1, 0.2), first_surprisal=(1, 0.9, 0.3), entropy=(1, 0.4, 0.8))
    item = PruneItem.of(lab.numbered(3), scores=scores)
    assert await kept(lab, item, drop=0.4, score="surprisal") == (0, 2)
    assert await kept(lab, item, drop=0.4, score="first_surprisal") == (0, 1)
    assert await kept(lab, item, drop=0.4, score="entropy") == (0, 2)


async def test_conclusions_and_steps_without_scores_stay(lab: SimpleNamespace) -> None:
    item = scored(lab, [5] * 4, [9, 0.1, nan, 0.2], "Take 6.\n\nThe answer is 42.\n\nThen 7.\n\nAdd 1 more.")
    assert await kept(lab, item, drop=0.9) == (0, 1, 2)


async def test_a_question_goes_with_its_answer_or_stays_with_it(lab: SimpleNamespace) -> None:
    text = "Take 6 rows.\n\nWait, is it 7?\n\nNo, it is 6.\n\nSo 6 * 7 = 42.\n\nAdd none."
    item = scored(lab, [10] * 5, [9, 0.1, 0.3, 5, 2], text)
    assert await kept(lab, item, drop=0.4) == (0, 3, 4)
    assert await kept(lab, item, drop=0.2) == (0, 1, 2, 3)  # 0.2 is under 2, but two steps do not fit
    flat = (0.0,) * 5
    first = StepScores(tokens=(10,) * 5, surprisal=flat, first_surprisal=(9, 3, 0.1, 5, 2), entropy=(9, 1, 0.5, 5, 2))
    item = item.model_copy(update={"scores": first})
    assert await kept(lab, item, drop=0.2, score="first_surprisal") == (0, 1, 2, 3)  # 3 for both, 2 for the last
    assert await kept(lab, item, drop=0.4, score="entropy") == (0, 3, 4)  # 1.5 in sum


async def test_scores_of_another_segmentation_are_refused(lab: SimpleNamespace) -> None:
    item = scored(lab, [5] * 4, [1.0] * 4).model_copy(update={"steps": PruneItem.of(lab.numbered(3)).steps})
    with pytest.raises(UserError, match="scores of 4 steps, but it has 3"):
        await kept(lab, item)


async def test_the_parent_is_kept_without_scores_or_budget(lab: SimpleNamespace) -> None:
    items = [PruneItem.of(lab.numbered(3)), scored(lab, [50, 50], [1, 1])]
    results = await LowInformation().prune(items, Tools(verify=lab.verify))
    assert [result.reason for result in results] == ["not_scored", "nothing_to_drop"]


async def test_an_open_trace_stays_open(lab: SimpleNamespace) -> None:
    item = scored(lab, [5] * 4, [1.0] * 4)
    opened = item.model_copy(update={"trace": item.trace.model_copy(update={"thinking": Thinking.OPEN})})
    (result,) = await LowInformation(drop=0.5).prune([opened], Tools(verify=lab.verify))
    assert result.closed is False


@pytest.mark.parametrize("drop", [0.0, 1.0])
def test_a_budget_of_nothing_or_all_is_refused(drop: float) -> None:
    with pytest.raises(ValidationError):
        LowInformation(drop=drop)


async def rewritten(lab: SimpleNamespace, reply: Conclusion, **params):
    writer = lab.Writer(reply)
    item = PruneItem.of(lab.trace("word " * 100))
    (result,) = await Rewrite(**params).prune([item], Tools(verify=lab.verify, writer=writer))
    return result, writer


async def test_a_rewrite_replaces_the_reasoning_and_keeps_the_ending(lab: SimpleNamespace) -> None:
    result, writer = await rewritten(lab, Conclusion(reasoning="short " * 45))
    assert writer.batches[0][0].words == 50
    assert (result.reasoning, result.kept) == ("short " * 45, ())
    assert (result.answer_text, result.calls, result.reason) == ("The answer is 42.", 1, None)


@pytest.mark.parametrize(
    ("target", "reached", "words", "reason"),
    [
        (0.5, 0.5, 75, None),
        (0.5, 0.5, 80, "length_not_reached"),
        (0.5, 0.0, 99, None),
        (0.5, 0.0, 101, "length_not_reached"),
        (2.0, 0.5, 160, None),
        (2.0, 0.5, 120, "length_not_reached"),
        (1.0, 0.5, 140, None),
        (0.5, 0.5, 0, "empty_rewrite"),
    ],
)
async def test_a_rewrite_that_misses_its_target_length_is_refused(
    lab: SimpleNamespace, target: float, reached: float, words: int, reason: str | None
) -> None:
    result, _ = await rewritten(lab, Conclusion(reasoning="w " * words), target=target, reached=reached)
    assert result.reason == reason


async def test_the_parent_is_kept_if_the_writer_fails(lab: SimpleNamespace) -> None:
    result, _ = await rewritten(lab, Conclusion(error="server_error"))
    assert (result.reason, result.detail) == ("writer_error", "server_error")


async def test_a_missing_writer_is_refused(lab: SimpleNamespace) -> None:
    with pytest.raises(UserError, match="rewrite needs a model"):
        await Rewrite().prune([PruneItem.of(lab.numbered(3))], Tools(verify=lab.verify))
