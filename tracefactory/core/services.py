"""What a worker gives to the stages that run on it: answers of models, verifiers, what is kept between batches."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

from pydantic import SecretStr

from tracefactory.core.environment import Environment, EnvStr
from tracefactory.core.model import ChatRequest, Completion, ModelSpec, RequestFailed
from tracefactory.core.pipeline import Pipeline
from tracefactory.core.rows import Verdict

Record = Mapping[str, Any]
"""A completion as the request store keeps it: `request`, `completion`, `cost` when paid, and the `run` that paid."""

Answer = Record | RequestFailed


class Completer(Protocol):
    """What answers requests: a model's client, or models in this process."""

    async def complete(self, request: ChatRequest) -> Completion:
        """Return the completion.

        Raises:
            RequestFailed: when there is none.
        """
        ...


class Closing(Protocol):
    """What a worker keeps until it ends."""

    async def close(self) -> None: ...


Kept = TypeVar("Kept", bound=Closing)


class Services(Protocol):
    """What a worker gives to the stages that run on it."""

    pipeline: Pipeline
    state_dir: Path
    run_id: str
    keys: Mapping[str, str]
    """The keys of all stages of the pipeline."""

    @property
    def environment(self) -> Environment: ...

    @property
    def verifiers(self) -> Any:
        """The pool of verifier processes: a `verification.VerifierPool`."""
        ...

    async def complete(
        self, model: str, requests: Sequence[ChatRequest], stage_id: str, client: Completer | None = None
    ) -> list[Answer]:
        """Return an answer for every request, in order: from the store, or paid for and stored as it arrives."""
        ...

    def left_failure(self, stage_id: str, row_id: str) -> RequestFailed | None:
        """Return the earlier failure of a row that this run does not try again; None for all other rows."""
        ...

    def stored(self, keys: Sequence[str]) -> Mapping[str, Record]:
        """Return the completions stored under these keys."""
        ...

    def client(self, model: str, served_as: tuple[str, ModelSpec] | None = None) -> Any:
        """Return the one client of a model: a `serving.client.ChatClient`.

        `served_as` (what for, and how) gives a separate client to a model that is served otherwise than declared.
        """
        ...

    def keep(self, name: str, make: Callable[[], Kept], models: Collection[str]) -> Kept:
        """Return what is filed under `name`: made at the first call, and closed with the worker or one of `models`."""
        ...

    def secret(self, value: EnvStr) -> SecretStr:
        """Return the value of an "env:NAME" parameter."""
        ...


async def verify(tasks: Sequence[Any], services: Services) -> list[Verdict]:
    """Return the verdict of each `verification.VerifyTask`, in order; a failure is a verdict too."""
    verdicts: list[Verdict] = await services.verifiers.verify(tasks)
    return verdicts
