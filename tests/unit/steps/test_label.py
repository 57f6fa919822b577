"""A model's labels replace the rules' where they can be read, and only there."""

from collections.abc import Sequence

from tracefactory.text.steps import StepKind, segment
from tracefactory.text.steps.label import PER_PROMPT, LabelItem, parse_labels, relabel


class Scripted:
    def __init__(self, replies: list[str]) -> None:
        self.replies, self.batches = replies, []

    async def label(self, items: Sequence[LabelItem]) -> list[str]:
        self.batches.append(list(items))
        return self.replies[: len(items)]


async def test_steps_without_a_label_keep_the_kind_of_the_rules() -> None:
    text = "x = 1 holds.\n\nLet me check it.\n\nSo y = 2."
    labeller = Scripted(["0: filler\n[1] **reflection**\n2: nonsense\n9: filler"])
    (steps,) = await relabel([("t", "Q", text, segment(text))], labeller)
    assert [(step.kind, step.rule) for step in steps] == [
        (StepKind.FILLER, "model"),
        (StepKind.REFLECTION, "model"),
        (StepKind.DERIVATION, "no_rule"),
    ]


async def test_long_traces_are_labelled_in_parts_of_one_batch() -> None:
    text = "\n\n".join(f"Then x = {number}." for number in range(PER_PROMPT + 5))
    labeller = Scripted(["0: filler", f"{PER_PROMPT}: restart\n0: conclusion"])
    (steps,) = await relabel([("t", "Q", text, segment(text))], labeller)
    assert len(labeller.batches) == 1
    assert labeller.batches[0][1].numbered().startswith(f"[{PER_PROMPT}] Then x = {PER_PROMPT}.")
    assert (steps[0].kind, steps[PER_PROMPT].kind) == (StepKind.FILLER, StepKind.RESTART)


def test_the_last_label_of_a_step_counts() -> None:
    assert parse_labels("1: filler\nsorry\n1: derivation") == {1: StepKind.DERIVATION}
