"""The models that a worker has loaded: clients with the servers that they started, and what stages keep in memory."""

from __future__ import annotations

import gc
import sys
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, cast

from tracefactory.core.environment import Environment
from tracefactory.core.model import ModelSpec
from tracefactory.core.services import Closing, Completer, Kept

if TYPE_CHECKING:
    from tracefactory.serving.client import ChatClient
    from tracefactory.serving.status import ModelStatus


class _Client(NamedTuple):
    model: str
    client: ChatClient


class _Resource(NamedTuple):
    """What stages keep, with the models that it is made of."""

    made: Closing
    models: frozenset[str]


class LoadedModels:
    """The clients and resources of one worker.

    Args:
        models: the models of the pipeline.
        log_dir: the folder for the logs of servers.
        environment: returns the environment of the worker.
    """

    def __init__(self, models: Mapping[str, ModelSpec], log_dir: Path, environment: Callable[[], Environment]) -> None:
        self.models, self.log_dir = models, log_dir
        self._environment = environment
        self._clients: dict[str, _Client] = {}
        self._resources: dict[str, _Resource] = {}
        self._held: dict[str, int] = {}

    def client(self, model: str, served_as: tuple[str, ModelSpec] | None = None) -> ChatClient:
        """Return the client of a model; its endpoint is started by the first request."""
        name = model if served_as is None else f"{model}-{served_as[0]}"
        if name not in self._clients:
            # Importing it takes half a second, which a run that asks nothing does not spend.
            from tracefactory.serving.client import ChatClient

            spec = self.models[model] if served_as is None else served_as[1]
            client = ChatClient.connect(spec, self.log_dir / name, self._environment())
            self._clients[name] = _Client(model, client)
        return self._clients[name].client

    def is_own(self, model: str, client: Completer | None) -> bool:
        """Tell whether a completer is none in particular, or the client of the model as it is declared."""
        found = self._clients.get(model)
        return client is None or (found is not None and found.client is client)

    def keep(self, name: str, make: Callable[[], Kept], models: Collection[str]) -> Kept:
        """Return what is filed under `name`; see `Services.keep`."""
        if name not in self._resources:
            self._resources[name] = _Resource(make(), frozenset(models))
        return cast(Kept, self._resources[name].made)

    def hold(self, model: str, gpus: int) -> None:
        """Note the GPUs that this process holds for a model in its memory."""
        self._held[model] = gpus

    def gpus(self) -> dict[str, int]:
        """Return the GPUs that the process and its servers hold, by model."""
        found = Counter(self._held)
        for one in self._clients.values():
            found[one.model] += one.client.gpus
        return dict(found)

    def status(self) -> dict[str, ModelStatus]:
        """Return the state of every client by name."""
        return {name: one.client.status for name, one in self._clients.items()}

    def drain(self) -> None:
        """Send no further requests."""
        for one in self._clients.values():
            one.client.drain()

    async def release(self, model: str) -> None:
        """End the clients and servers of a model, and what of it is in memory; a later request starts them again."""
        for name in [name for name, resource in self._resources.items() if model in resource.models]:
            await self._resources.pop(name).made.close()
        for name in [name for name, one in self._clients.items() if one.model == model]:
            await self._clients.pop(name).client.close()
        self._held.pop(model, None)
        if (torch := sys.modules.get("torch")) is not None:
            gc.collect()
            torch.cuda.empty_cache()  # torch keeps freed memory of a GPU, which servers on it could not use

    async def close(self) -> None:
        """End all of them."""
        for one in self._clients.values():
            await one.client.close()
        for resource in self._resources.values():
            await resource.made.close()
