"""Process labels: reasoning in labelled steps, for training process reward models."""

from __future__ import annotations

from pydantic import Field

from tracefactory.core.rows import Trace
from tracefactory.publish.views import Row, Tracked, ViewError, trace_view, tracking


class StepsRow(Tracked):
    """One trace cut into labelled steps."""

    prompt: str = Field(description="The question.")
    completions: list[str] = Field(description="The labelled steps, in order, without white space at their ends.")
    labels: list[bool] = Field(description="Whether each step is right.")
    values: list[float] = Field(description="The value of each step, such as a share of continuations that are right.")
    sources: list[str] = Field(description="Who labelled each step.")


@trace_view(
    name="steps",
    version="2",
    summary="`prompt`, `completions` (steps) and `labels`, one per step: the stepwise supervision format of TRL.",
    row=StepsRow,
    partial=True,
)
def steps(trace: Trace) -> Row:
    """Return the labelled steps (https://huggingface.co/docs/trl/dataset_formats, stepwise supervision).

    A step is right when its label is "correct", or without a label when its value is above one half. Trainers put a
    separator of their own after every step, so white space at the ends of steps is left out.
    """
    if not trace.steps:
        raise ViewError("no_step_labels", "no stage labelled its steps")
    labelled = sorted(trace.steps, key=lambda step: step.start)
    if any(not step.label and step.value is None for step in labelled):
        raise ViewError("step_without_label", "a step has neither a label nor a value")
    texts = [trace.reasoning[step.start : step.end].strip() for step in labelled]
    if not all(texts):
        raise ViewError("empty_step", "a step has no text")
    return {
        **tracking(trace),
        "prompt": trace.problem.question,
        "completions": texts,
        "labels": [step.label == "correct" if step.label else (step.value or 0.0) > 0.5 for step in labelled],
        "values": [float(step.label == "correct") if step.value is None else step.value for step in labelled],
        "sources": [step.source for step in labelled],
    }
