"""Where a text can stop: after what settles something, not after what promises it."""

import pytest

from tracefactory.text.steps.ending import leaves_open


@pytest.mark.parametrize(
    "step",
    [
        "Wait, maybe I made a mistake.",
        "Wait, no, 12 + 2 = 14, not 15.",
        "So x = 4. Hmm, but is that the smallest one?",
        "Okay, let me think about this.",
        "The three cases are as follows:",
        "Let me verify.",
        "Alternatively, use the law of cosines.",
        "The sum is 12, and then...",
        "等等，这里算错了。",
        "\n\n",
    ],
)
def test_an_announcement_leaves_a_step_open(step: str) -> None:
    assert leaves_open(step)


@pytest.mark.parametrize(
    "step",
    [
        "So x = 4.",
        "Wait, 3 + 4 is 7. So x = 7.\n\n",
        "Let me check: 42 / 6 = 7, which fits.",
        "Wait, so the answer is 70.",
        "The sum becomes:\n\\[ 3 + 4 = 7 \\]",
        "Alternatively, with x = 2 we get y = 3.",
        "Now we divide by 7.",
        "Is it 7? No, it is 6.",
        "因此x=3。",
        "是的，它是6。",
    ],
)
def test_a_resolved_doubt_does_not_leave_a_step_open(step: str) -> None:
    assert not leaves_open(step)
