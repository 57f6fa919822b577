"""Sample attempts one after the other until enough of them are correct."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from pydantic import Field

from tracefactory.core.rollout import ROLLOUTS, Ask, Rollout
from tracefactory.core.rows import Outcome, Row, Trace
from tracefactory.core.stage import ModelName, PromptName


@ROLLOUTS.register("until_correct")
class UntilCorrect(Rollout):
    """Sample attempts one after the other until `wanted` of them are correct, or `attempts` are made.

    It passes on every attempt, so that later stages verify and filter as usual. An easy problem costs `wanted` requests
    where `sample: chat` pays for all samples. The pass rate of such attempts is biased upwards, because sampling stops
    at a success.
    """

    name, version = "until_correct", "1"
    verifies: ClassVar[bool] = True

    model: ModelName = Field(description="The teacher, by its name under models:.")
    prompt: PromptName = Field(description="The prompt, by its file name in prompts/.")
    attempts: int = Field(default=8, ge=1, description="The most attempts at one problem.")
    wanted: int = Field(default=1, ge=1, description="Correct attempts after which sampling stops.")

    def requests_at_most(self) -> Mapping[str, int]:
        return {self.model: self.attempts}

    async def run(self, row: Row, ask: Ask) -> Sequence[Trace]:
        made: list[Trace] = []
        correct = 0
        while correct < self.wanted and len(made) < self.attempts:
            attempt = await ask(self.model, self.prompt, sample=len(made))
            made.append(attempt)
            verdict = await ask.verify(attempt)
            correct += verdict.outcome is Outcome.CORRECT
        return made
