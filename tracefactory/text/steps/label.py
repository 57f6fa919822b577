"""Classify steps with a model (prompt: step_types) instead of the rules."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Protocol

from tracefactory.core.rows import Frozen
from tracefactory.text.steps.model import Step, StepKind

PER_PROMPT = 40  # steps per prompt
MODEL_RULE = "model"  # the rule of a step that a model classified
_LINE = re.compile(rf"^[^\w\n]*+(\d{{1,9}})\W{{1,20}}({'|'.join(StepKind)})\b", re.IGNORECASE | re.MULTILINE)


class LabelItem(Frozen):
    """Consecutive steps of the trace `id`; `first` is the index of the first of them."""

    id: str
    question: str
    first: int
    steps: tuple[str, ...]

    def numbered(self) -> str:
        """Return the numbered steps, as the prompt's variable `reasoning`."""
        return "\n\n".join(f"[{number}] {step}" for number, step in enumerate(self.steps, self.first))


class Labeller(Protocol):
    """A model that labels steps, in batches."""

    async def label(self, items: Sequence[LabelItem]) -> list[str]:
        """Return one reply per item, in order."""
        ...


def label_items(name: str, question: str, text: str, steps: Sequence[Step]) -> Iterator[LabelItem]:
    """Yield the items of one trace, with up to `PER_PROMPT` steps each.

    Args:
        name: the id of the trace.
        question: the question of its problem.
        text: its reasoning.
        steps: the steps of the reasoning.
    """
    for first in range(0, len(steps), PER_PROMPT):
        shown = tuple(step.of(text).strip() for step in steps[first : first + PER_PROMPT])
        yield LabelItem(id=name, question=question, first=first, steps=shown)


async def relabel(
    traces: Sequence[tuple[str, str, str, tuple[Step, ...]]], labeller: Labeller
) -> list[tuple[Step, ...]]:
    """Classify the steps of traces with a model, in one batch.

    Args:
        traces: the (id, question, text, steps) of each trace.
        labeller: the model.

    Returns:
        The steps of each trace with the kinds from the model and the rule `model`; a step without a valid label keeps
        its kind and rule.
    """
    items, owners = [], []
    for number, trace in enumerate(traces):
        for item in label_items(*trace):
            items.append(item)
            owners.append(number)
    replies = await labeller.label(items) if items else []
    given: list[dict[int, StepKind]] = [{} for _ in traces]
    for owner, item, reply in zip(owners, items, replies, strict=True):
        span = range(item.first, item.first + len(item.steps))
        given[owner].update((index, kind) for index, kind in parse_labels(reply).items() if index in span)
    return [
        tuple(
            step.model_copy(update={"kind": kinds[step.index], "rule": MODEL_RULE}) if step.index in kinds else step
            for step in steps
        )
        for (_, _, _, steps), kinds in zip(traces, given, strict=True)
    ]


def parse_labels(reply: str) -> dict[int, StepKind]:
    """Parse "3: derivation" lines; the last label of a step counts."""
    return {int(number): StepKind(kind.lower()) for number, kind in _LINE.findall(reply)}
