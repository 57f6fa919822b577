"""Names and intermediate values whose definition was cut."""

from types import SimpleNamespace

import pytest

from tracefactory.pruning import PruneItem, reverify
from tracefactory.pruning.base import keep
from tracefactory.pruning.undefined import undefined

QUESTION = "A box has 12 eggs, and a crate 9 boxes. How many eggs are in 3 crates?"


def item_of(lab: SimpleNamespace, *steps: str) -> PruneItem:
    item = PruneItem.of(lab.trace("\n\n".join(steps), question=QUESTION, gold="324", answer_text="The answer is 324."))
    assert len(item.steps) == len(steps)
    return item


@pytest.mark.parametrize(
    ("cut", "kept", "lost"),
    [
        ("A crate has 9 * 12 = 108 eggs.", "Then 3 * 108 = 324.", "108"),
        ("A crate has 9 * 12 = 108 eggs.", "The answer is three times 108.", "108"),
        ("They cost 0.50 each, 12.50 in all.", "So $12.5 is the price of a box.", "12.5"),
        ("There are 1,250 of them.", "Divide the 1250 by 12.", "1250"),
        ("One half of 12 is 6.", "Then 9 * 6 is 54.", "6"),
        ("Let x be the number of eggs.", "So x is 9 times 12.", "the definition of x"),
        ("Let $n$ denote the crates.", "Then $n = 3$ and 12n.", None),  # it is defined anew
        ("Set y = 9 * 12.", "Three times y is 324.", "the definition of y"),
        ("设 x 为鸡蛋的数量。", "所以 x 是 108。", "the definition of x"),
    ],
)
def test_what_only_the_cut_text_defines_is_missed(lab: SimpleNamespace, cut: str, kept: str, lost: str | None) -> None:
    item = item_of(lab, "Read the question first.", cut, kept)
    fault = undefined(item, keep(item, (0, 2), "The answer is 324."))
    assert (fault is None) if lost is None else str(fault).startswith(lost)
    assert undefined(item, keep(item, (0, 1, 2), "The answer is 324.")) is None
    assert undefined(item, keep(item, (0, 1), "The answer is 324.")) is None


@pytest.mark.parametrize(
    ("cut", "kept"),
    [
        ("A crate has 108 eggs.", "9 * 12 = 108 eggs, so 3 * 108 = 324."),  # calculated again
        ("A box has 12 eggs.", "Then 9 * 12 = 108."),  # in the question
        ("Is it 7 or 8?", "Take 1 of the 9 boxes, and 2 more."),  # small numbers need no definition
        ("The box is 5 m wide.", "It is 12 m long."),  # a unit is no name
        ("I think a box is small.", "I see a crate."),
        ("Let x be the number of eggs.", "Let x be the number of eggs, then x = 324."),
        ("So 324 eggs.", "We get 9 * 12 * 3 = 324."),
    ],
)
def test_what_is_defined_elsewhere_is_not(lab: SimpleNamespace, cut: str, kept: str) -> None:
    item = item_of(lab, "Read the question first.", cut, kept)
    assert undefined(item, keep(item, (0, 2), "The answer is 324.")) is None


async def test_the_parent_is_kept_instead(lab: SimpleNamespace) -> None:
    item = item_of(lab, "A crate has 9 * 12 = 108 eggs.", "Then 3 * 108 = 324.", "So the answer is 324.")
    (checked,) = await reverify([item], [keep(item, (1, 2), "The answer is 324.")], lab.verify)
    assert checked.result.reason == "undefined_value"
    assert checked.result.detail == "108 was cut: Then 3 * 108 = 324."
