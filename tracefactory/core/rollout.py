"""Rollouts: what happens within one problem over several requests, as an async function over one row.

A rollout asks models through `Ask`, which stores every completion under a key made from its content: a rollout that is
killed is run again and gets the same replies without paying. It must therefore be deterministic: no clock, no random
numbers, and no input or output except through `Ask`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from typing import Any, ClassVar, Protocol

from pydantic import Field

from tracefactory.core.registry import Registry, registry
from tracefactory.core.rows import Frozen, Row, Trace, Verdict


class Ask(Protocol):
    """Asks the models of one rollout about its row."""

    async def __call__(
        self,
        model: str,
        prompt: str,
        *,
        after: Trace | None = None,
        sample: int = 0,
        temperature: float | None = None,
        max_tokens: int | None = None,
        **variables: Any,
    ) -> Trace:
        """Return the reply of a model as a trace of the row's problem.

        Args:
            model: the model, by the value of a parameter of the rollout.
            prompt: the prompt, by the value of a parameter of the rollout.
            after: the reply whose conversation goes on; the prompt is the user's next message.
            sample: numbers requests that are otherwise equal; equal requests have one reply.
            temperature: that of the rollout unless given.
            max_tokens: at most that of the rollout.
            variables: values for the prompt's variables, in place of those of the row.

        Raises:
            RequestFailed: when there is no reply. Caught or not, a rollout with a request that may yet succeed is
                tried again by the next run.
        """
        ...

    async def verify(self, reply: Trace) -> Verdict:
        """Return the verdict on a reply by the verifier of its problem; the rollout declares `verifies = True`."""
        ...


class Rollout(Frozen, ABC):
    """One way to make traces of a row with several requests. Its fields are the parameters of `rollout: <name>`.

    Attributes:
        name: the name in a pipeline and of its file.
        version: raised when the same row would give other traces.
        verifies: whether it calls `ask.verify`.
        variables: the names of the variables that it passes to `ask`, in addition to those of the row.
    """

    name: ClassVar[str]
    version: ClassVar[str]
    verifies: ClassVar[bool] = False
    variables: ClassVar[frozenset[str]] = frozenset()

    samples: int = Field(default=1, ge=1, description="Rollouts for each row, each with its own seed.")
    max_tokens: int = Field(default=4096, ge=1, description="Tokens of one reply, reasoning and answer together.")
    temperature: float = Field(default=0.7, ge=0, description="Sampling temperature; 0 decodes greedily.")
    top_p: float = Field(default=0.95, gt=0, le=1, description="Nucleus sampling: the share of probability drawn from.")
    seed: int = Field(default=0, ge=0, description="Start of the seeds of the rollouts.")

    @abstractmethod
    def requests_at_most(self) -> Mapping[str, int]:
        """Return, by model, a bound on the requests of one rollout; the plan prices it, and the run enforces it."""

    def asked_with(self) -> Mapping[str, Collection[str]]:
        """Return, by model, the prompts that it may be asked with; a model that is left out may get every prompt.

        The model's chat template is tried on these prompts before anything is paid, and the run holds the rollout to
        them. Only a rollout with several models and prompts needs this.
        """
        return {}

    @abstractmethod
    async def run(self, row: Row, ask: Ask) -> Trace | Sequence[Trace]:
        """Return the traces of one row, one or more, each a reply of `ask` or a copy of one with changed fields."""


ROLLOUTS: Registry[type[Rollout]] = registry("rollout")
"""Every rollout by name."""
