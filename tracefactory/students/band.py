"""The parameters that every filter on a student measure shares."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from tracefactory.filters import Params


class Band(Params):
    """Bounds of a measure, both inclusive; None is no bound, and at least one has to be given."""

    min: float | None = None
    max: float | None = None

    @model_validator(mode="after")
    def _bounds_make_sense(self) -> Self:
        if self.min is None and self.max is None:
            raise ValueError("give at least one of min, max")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"the minimum {self.min:g} is above the maximum {self.max:g}")
        return self

    def below(self, value: float) -> bool:
        return self.min is not None and value < self.min

    def above(self, value: float) -> bool:
        return self.max is not None and value > self.max


class StudentBand(Band):
    """Bounds of a measure under `student`, a model the pipeline declares and a stage before this one measured."""

    student: str = Field(min_length=1)
