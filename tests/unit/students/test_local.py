from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from tracefactory.students.in_process import InProcess
from tracefactory.students.local import local_naturalness, step_windows
from tracefactory.students.render import Rendered
from tracefactory.students.steps import step_curves
from tracefactory.students.student import Student

STEPS = ["Half of 84 is 42.\n\n", "42 and 42 make 84 again.\n\n", "So 42 are sold.\n\n", "84 - 42 = 42 are left."]
REASONING = "".join(STEPS)
BORDERS = np.cumsum([0, *map(len, STEPS)]).tolist()
SPANS = list(pairwise(BORDERS))


def render(student: Student, reasoning: str = REASONING) -> Rendered:
    return student.render("84 apples, half are sold. How many are left?", reasoning, "\\boxed{42}")


async def test_local_naturalness_over_all_steps_is_the_global_mean(smollm: Student) -> None:
    rendered = render(smollm)
    [scores] = smollm.score([rendered])
    [local] = await local_naturalness(InProcess(smollm), [(rendered, SPANS)], window=len(STEPS) + 1)
    assert local == pytest.approx(-step_curves(scores, SPANS).surprisal.mean(), abs=1e-4)


def test_a_window_contains_only_the_steps_before(smollm: Student) -> None:
    rendered = render(smollm)
    first, second, third, fourth = step_windows(rendered, SPANS, window=2)
    opening = smollm.tokenizer.decode(rendered.ids[: rendered.first].tolist())
    assert seen(smollm, first) == opening + "<think>\n" + STEPS[0]
    assert seen(smollm, second) == opening + "<think>\n" + STEPS[0] + STEPS[1]
    assert seen(smollm, third) == "<|im_start|>" + STEPS[0] + STEPS[1] + STEPS[2]
    assert seen(smollm, fourth) == "<|im_start|>" + STEPS[1] + STEPS[2] + STEPS[3]
    supervised = [piece.ids[piece.first :] for piece in (first, second, third, fourth)]
    assert smollm.tokenizer.decode(np.concatenate(supervised).tolist()) == REASONING


def seen(student: Student, piece: Rendered) -> str:
    return str(student.tokenizer.decode(piece.ids.tolist()))


def test_text_outside_the_window_does_not_change_the_score(smollm: Student) -> None:
    other = render(smollm, "The moon is far!!\n\n" + "".join(STEPS[1:]))
    assert len(STEPS[0]) == len("The moon is far!!\n\n")
    pieces = [step_windows(rendered, SPANS, window=1)[3] for rendered in (render(smollm), other)]
    one, two = smollm.score(pieces)
    np.testing.assert_allclose(one.logprobs, two.logprobs, atol=1e-5)


async def test_traces_are_scored_together_and_one_without_steps_has_no_value(smollm: Student) -> None:
    rendered = render(smollm)
    both = await local_naturalness(
        InProcess(smollm), [(rendered, SPANS), (rendered, []), (rendered, SPANS[:1])], window=2
    )
    assert both[1] is None
    assert both[0] == pytest.approx(
        (await local_naturalness(InProcess(smollm), [(rendered, SPANS)], window=2))[0], abs=1e-4
    )
    assert both[2] != both[0]
    with pytest.raises(ValueError, match="at least one step"):
        await local_naturalness(InProcess(smollm), [(rendered, SPANS)], window=0)
