"""Have a model revise its attempt until the answer is correct."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from pydantic import Field

from tracefactory.core.rollout import ROLLOUTS, Ask, Rollout
from tracefactory.core.rows import Outcome, Row, Trace
from tracefactory.core.stage import ModelName, PromptName


@ROLLOUTS.register("revise")
class Revise(Rollout):
    """Sample an attempt; while it is incorrect, go on with the conversation and ask for a revision.

    It passes on the last reply with the whole conversation. The revision prompt is the user's next message after each
    incorrect reply; it sees no gold answer unless its template shows one.
    """

    name, version = "revise", "1"
    verifies: ClassVar[bool] = True

    model: ModelName = Field(description="The teacher, by its name under models:.")
    prompt: PromptName = Field(description="The prompt of the attempt, by its file name in prompts/.")
    revise_prompt: PromptName = Field(description="The prompt that asks for a revision.")
    revisions: int = Field(default=1, ge=1, description="The most revisions of one attempt.")

    def requests_at_most(self) -> Mapping[str, int]:
        return {self.model: 1 + self.revisions}

    async def run(self, row: Row, ask: Ask) -> Trace:
        reply = await ask(self.model, self.prompt)
        for _ in range(self.revisions):
            verdict = await ask.verify(reply)
            if verdict.outcome is not Outcome.INCORRECT:
                break
            reply = await ask(self.model, self.revise_prompt, after=reply)
        return reply
