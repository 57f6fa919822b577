"""The section `teach:` of a pipeline file: which datasets are compared by what a student learns from them, and how.

The stages of the file are the examination: a source of questions, a sample stage and a verifier. `tracefactory teach`
trains the student on each dataset and runs these stages with every trained student in place of the model `answers`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, WithJsonSchema, model_validator

from tracefactory.core.rows import Frozen

UNTOUCHED = "untouched"
"""The name of the student as it is before any training, which always takes part."""
Control = Literal["truncated", "random", "shuffled"]
CONTROLS: tuple[Control, ...] = ("truncated", "random", "shuffled")
"""The datasets that are made by default, see `Teach.controls`."""
Axis = Literal["tokens", "rows", "problems"]

_THOUSANDS = {"k": 1_000, "M": 1_000_000, "B": 1_000_000_000}
_NUMBER = re.compile(r"(\d+(?:\.\d+)?)\s*([kMB])")


def _count(value: object) -> object:
    """Return 2M, 20k or 1.5k as a number; anything else as it is."""
    found = _NUMBER.fullmatch(value) if isinstance(value, str) else None
    return value if found is None else round(float(found[1]) * _THOUSANDS[found[2]])


Count = Annotated[
    int,
    BeforeValidator(_count),
    Field(gt=0),
    WithJsonSchema({"anyOf": [{"type": "integer", "minimum": 1}, {"type": "string", "pattern": _NUMBER.pattern}]}),
]
"""A number, as in 2000000, 2M or 20k."""


class Arm(Frozen):
    """One dataset that the student is trained on: rows of a release, or rows made from another dataset.

    Exactly one of `release`, `truncate`, `random` and `shuffle` says where its rows come from.
    """

    release: str = Field(default="", description="A release: its folder, as in out/NAME/VERSION, or ORG/REPO@TAG.")
    view: str = Field(default="", description="Its view: sft, messages or chat; by default the first of these it has.")
    style: str = Field(default="", description="Only its rows of this style; all by default.")
    truncate: str = Field(default="", description="A dataset by name, whose targets are cut at the end.")
    share: float | None = Field(
        default=None, gt=0, lt=1, description="Share of each target that `truncate` keeps, in tokens of the student."
    )
    like: str = Field(
        default="",
        description="The dataset whose mean length in tokens `truncate`, or whose number of rows `random` is to have.",
    )
    random: str = Field(default="", description="A dataset by name, of which rows are drawn, as many as `like` has.")
    shuffle: str = Field(default="", description="A dataset by name; its targets get the questions of other problems.")

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        named = [name for name in ("release", "truncate", "random", "shuffle") if getattr(self, name)]
        if len(named) != 1:
            raise ValueError("name one of release, truncate, random and shuffle")
        if self.truncate and (self.share is None) == (not self.like):
            raise ValueError("truncate needs share, or like")
        if self.random and not self.like:
            raise ValueError("random needs like")
        if (self.view or self.style) and not self.release:
            raise ValueError("view and style choose rows of a release")
        return self

    @property
    def made_from(self) -> tuple[str, ...]:
        """The names of the datasets that it is made from."""
        return tuple(name for name in (self.truncate, self.random, self.shuffle, self.like) if name)


class TrainingBudget(Frozen):
    """How much a student is trained on: exactly one of `tokens`, `rows` and `problems`. Repeats count each time."""

    tokens: Count | None = Field(default=None, description="Budget of each dataset: tokens of the student in the loss.")
    rows: Count | None = Field(default=None, description="Budget of each dataset: rows.")
    problems: Count | None = Field(
        default=None, description="Budget of each dataset: problems, each with all of its rows."
    )

    @model_validator(mode="after")
    def _one_axis(self) -> Self:
        if sum(value is not None for value in (self.tokens, self.rows, self.problems)) != 1:
            raise ValueError("the budget is one of tokens, rows and problems")
        return self

    @property
    def axis(self) -> Axis:
        """The name of the one that is given."""
        return "tokens" if self.tokens is not None else "rows" if self.rows is not None else "problems"

    @property
    def amount(self) -> int:
        """The budget of each dataset, in units of `axis`."""
        return int(self.tokens or self.rows or self.problems or 0)


class TrainerOptions(Frozen):
    """Options that the trainer gets as they are in the file."""

    warmup: float = Field(
        default=0.03,
        ge=0,
        lt=1,
        description="Share of the steps in which the learning rate rises from 0, rounded down to whole steps.",
    )
    schedule: Literal["constant", "linear", "cosine"] = Field(
        default="cosine", description="The schedule of the learning rate after that."
    )
    weight_decay: float = Field(default=0.0, ge=0, description="Weight decay.")
    lora_rank: Annotated[int, Field(ge=1)] | Literal["auto"] | None = Field(
        default="auto",
        description="The rank of adapters on all linear layers, which are merged at the end; null trains all weights, "
        "auto does so below 1B.",
    )
    dtype: Literal["float32", "bfloat16"] = Field(
        default="float32", description="The arithmetic of the forward pass; weights and optimizer are float32."
    )
    recompute: bool = Field(
        default=False, description="Compute activations again in the backward pass, which saves memory."
    )
    save_every: int = Field(
        default=200, ge=1, description="Steps between two checkpoints; a killed training goes on from the last one."
    )
    device: str = Field(
        default="auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$", description="The torch device: auto, cpu, cuda or cuda:N."
    )


class TrainingOptions(TrainerOptions):
    """How the student is trained, by TRL's SFTTrainer; loss on the last turn of the assistant alone."""

    learning_rates: tuple[float, ...] = Field(
        default=(1e-5, 3e-5, 1e-4),
        min_length=1,
        description="Rates that are tried with the first seed of each dataset; the one with the most correct answers "
        "to the development questions is taken.",
    )
    rows_per_step: int = Field(default=8, ge=1, description="Rows of one step of the optimizer.")
    rows_at_once: int = Field(
        default=8, ge=1, description="Rows of one forward pass; `rows_per_step` is a multiple of it, or smaller."
    )
    max_length: int = Field(
        default=2048, ge=16, description="Tokens of the longest row; longer ones are cut at the end, and counted."
    )

    @model_validator(mode="after")
    def _whole_steps(self) -> Self:
        if self.rows_per_step % min(self.rows_at_once, self.rows_per_step):
            raise ValueError("rows_per_step must be a multiple of rows_at_once")
        return self


class Teach(TrainingBudget):
    """A comparison of datasets by what one student learns from them at an equal budget.

    `student` is trained; `answers` is the model of the sample stage, in whose place each trained student answers.
    """

    student: str = Field(description="The student to train: a `use: transformers` model, by its name under models:.")
    answers: str = Field(
        description="The model under models: that the sample stage asks; each trained student takes its place."
    )
    arms: Mapping[str, Arm] = Field(min_length=1, description="The datasets to compare, by name.")
    controls: tuple[Control, ...] = Field(
        default=CONTROLS,
        description="Datasets that are made in addition to `arms`: the longest of them cut to the mean length "
        "of the shortest, random rows of all of them, and the first one with its targets under the questions of other "
        "problems.",
    )
    baseline: str = Field(default="", description="What the others are compared with; the first of `arms` by default.")
    seeds: int = Field(default=3, ge=1, le=100, description="Trainings of each dataset, which differ by their seed.")
    development: int = Field(
        default=100, ge=0, description="First questions of the source, which choose the learning rate and nothing else."
    )
    leaks: Literal["refuse", "drop"] = Field(
        default="refuse",
        description="Questions that are in training rows: refuse the comparison, or leave them out of the count (for "
        "tasks that have few questions).",
    )
    training: TrainingOptions = Field(default_factory=TrainingOptions, description="How the student is trained.")

    @model_validator(mode="after")
    def _whole(self) -> Self:
        taken = {UNTOUCHED, *self.controls} & self.arms.keys()
        if taken:
            raise ValueError(f"{', '.join(sorted(taken))} is made anyway: choose another name")
        for name, arm in self.arms.items():
            if unknown := set(arm.made_from) - self.arms.keys():
                raise ValueError(f"{name}: there is no dataset {', '.join(sorted(unknown))}")
        if self.baseline and self.baseline not in {UNTOUCHED, *self.controls, *self.arms}:
            raise ValueError(f"baseline: there is no dataset {self.baseline}")
        if len(self.training.learning_rates) > 1 and not self.development:
            raise ValueError("several learning_rates need development questions")
        self.order()
        return self

    def order(self) -> list[str]:
        """Return the names of `arms`, each after those that it is made from.

        Raises:
            ValueError: when datasets are made from each other in a circle.
        """
        ordered: list[str] = []
        while left := [name for name in self.arms if name not in ordered]:
            ready = [name for name in left if set(self.arms[name].made_from) <= set(ordered)]
            if not ready:
                raise ValueError(f"{', '.join(left)} are made from each other")
            ordered += ready
        return ordered
