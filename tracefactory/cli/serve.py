"""`tracefactory serve`."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Protocol, runtime_checkable

import typer

from tracefactory.cli.options import PipelineFile, Profile, Sets
from tracefactory.config import load_pipeline
from tracefactory.core.environment import Environment
from tracefactory.core.errors import Mistake, UserError, nearest
from tracefactory.core.model import Endpoint
from tracefactory.core.pipeline import Pipeline
from tracefactory.serving.vllm.placement import LocalPlacement
from tracefactory.serving.vllm.replica import Placement
from tracefactory.serving.vllm.shared import SharedServers, announce, heartbeat, withdraw
from tracefactory.store.leases import HEARTBEAT_S

_LOOK_S = 1.0
_NOTICE_EVERY_S = 5.0


class SharedEndpoint(Endpoint, Protocol):
    """Servers that several runs can use."""

    @property
    def urls(self) -> list[str]:
        """The base URLs of the servers that answer now."""
        ...


@runtime_checkable
class Shareable(Protocol):
    """The capability of a kind of model that its servers can be shared by several runs."""

    model: str

    def sharing_key(self, environment: Environment) -> str:
        """Return a digest that is equal for models that can use the same servers."""
        ...

    def endpoint(self, environment: Environment) -> SharedEndpoint:
        """Return the servers, which are not started yet."""
        ...


def serve(
    model: Annotated[str, typer.Argument(help="The name of the model, under `models:`.", show_default=False)],
    pipeline: PipelineFile,
    profile: Profile = None,
    sets: Sets = None,
) -> None:
    """Start the vLLM servers of one model, print their addresses, and keep them for all runs until Ctrl-C."""
    loaded = load_pipeline(pipeline, profile=profile, sets=sets or ())
    if model not in loaded.models:
        raise UserError(Mistake(f"{loaded.file} has no model {model!r}", hint=nearest(model, loaded.models)))
    spec = loaded.models[model]
    if not isinstance(spec, Shareable):
        raise UserError(f"runs cannot share the servers of {model!r}, a `use: {spec.use}` model; use `use: vllm`")
    asyncio.run(_serve(loaded, spec))


async def _serve(pipeline: Pipeline, spec: Shareable) -> None:
    """Run and announce the servers until Ctrl-C, SIGTERM, or until no server can be restarted any more."""
    environment = Environment(root=pipeline.project.root, placement=_placement(pipeline))
    folder = pipeline.project.state_dir / "servers"
    endpoint = spec.endpoint(environment)
    kept = SharedServers(
        model=spec.model,
        identity=spec.sharing_key(environment),
        pid=os.getpid(),
        host=socket.gethostname(),
        started=time.time(),
    )
    announce(folder, kept)  # before the minutes of loading, so that a run that starts now waits for the servers
    keeping = asyncio.create_task(_keep(endpoint, folder, kept))
    for one in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(one, keeping.cancel)
    try:
        with suppress(asyncio.CancelledError):
            await keeping
    finally:
        withdraw(folder, kept.identity)
        await endpoint.stop()


async def _keep(endpoint: SharedEndpoint, folder: Path, kept: SharedServers) -> None:
    """Start the servers, announce and print every change of their URLs, and print the progress of starting ones."""
    starting: asyncio.Task[list[str]] | None = None
    last_notice = float("-inf")
    last_heartbeat = time.monotonic()
    try:
        while True:
            if starting is None or starting.done():
                if starting is not None:
                    starting.result()  # raises when no server can be restarted any more
                starting = asyncio.create_task(endpoint.start(folder / f"{kept.identity[:16]}-logs"))
            await asyncio.wait([starting], timeout=_LOOK_S)
            if (urls := tuple(endpoint.urls)) != kept.urls:
                kept = kept.model_copy(update={"urls": urls})
                announce(folder, kept)
                print(*(urls or ["no server answers now"]), sep="\n", flush=True)
            if endpoint.notice and time.monotonic() - last_notice > _NOTICE_EVERY_S:
                print(endpoint.notice, file=sys.stderr, flush=True)
                last_notice = time.monotonic()
            if time.monotonic() - last_heartbeat > HEARTBEAT_S:
                heartbeat(folder, kept.identity)
                last_heartbeat = time.monotonic()
    finally:
        if starting is not None:
            starting.cancel()
            await asyncio.wait([starting])


def _placement(pipeline: Pipeline) -> Placement:
    """Return the placement of the servers: the Ray cluster of the pipeline, or this machine."""
    if pipeline.run.executor != "inline" and pipeline.run.ray_address is not None:
        from tracefactory.engine.executors.ray_servers import RayPlacement

        return RayPlacement(pipeline.run)
    return LocalPlacement()
