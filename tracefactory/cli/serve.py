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
from typing import Annotated

import typer

from tracefactory.cli.options import PipelineFile, Profile, Sets
from tracefactory.config import load_pipeline
from tracefactory.core.errors import UserError, nearest
from tracefactory.core.model import Environment
from tracefactory.core.pipeline import Pipeline
from tracefactory.models.vllm import VLLMSpec
from tracefactory.serving.vllm.endpoint import VLLMEndpoint
from tracefactory.serving.vllm.placement import LocalPlacement
from tracefactory.serving.vllm.replica import Placement
from tracefactory.serving.vllm.shared import SharedServers, announce, heartbeat, withdraw
from tracefactory.store.leases import HEARTBEAT_S

_LOOK_S = 1.0
_SAY_EVERY_S = 5.0


def serve(
    model: Annotated[str, typer.Argument(help="A name under models: whose servers to start.", show_default=False)],
    pipeline: PipelineFile,
    profile: Profile = None,
    sets: Sets = None,
) -> None:
    """Start just the vLLM servers of one model and print their addresses, until Ctrl-C; runs use them meanwhile."""
    loaded = load_pipeline(pipeline, profile=profile, sets=sets or ())
    asyncio.run(_serve(loaded, _spec(loaded, model)))


def _spec(pipeline: Pipeline, model: str) -> VLLMSpec:
    if model not in pipeline.models:
        hint = nearest(model, pipeline.models)
        raise UserError(f"{pipeline.file} has no model {model!r}" + (f" ({hint})" if hint else ""))
    spec = pipeline.models[model]
    if not isinstance(spec, VLLMSpec):
        raise UserError(f"only a model with `use: vllm` can be served for several runs; {model!r} is `use: {spec.use}`")
    return spec


async def _serve(pipeline: Pipeline, spec: VLLMSpec) -> None:
    """Keep the servers up and announced until Ctrl-C, SIGTERM, or the last of them has given up."""
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
    announce(folder, kept)  # before the minutes of loading, so that a run started now waits for it
    keeping = asyncio.create_task(_keep(endpoint, folder, kept))
    for one in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(one, keeping.cancel)
    try:
        with suppress(asyncio.CancelledError):
            await keeping
    finally:
        withdraw(folder, kept.identity)
        await endpoint.stop()


async def _keep(endpoint: VLLMEndpoint, folder: Path, kept: SharedServers) -> None:
    """Start the servers; announce and print every change of what answers, and say how far the others are."""
    starting: asyncio.Task[list[str]] | None = None
    said = float("-inf")
    beaten = time.monotonic()
    try:
        while True:
            if starting is None or starting.done():
                if starting is not None:
                    starting.result()  # raises when every server has given up
                starting = asyncio.create_task(endpoint.start(folder / f"{kept.identity[:16]}-logs"))
            await asyncio.wait([starting], timeout=_LOOK_S)
            if (urls := tuple(endpoint.urls)) != kept.urls:
                kept = kept.model_copy(update={"urls": urls})
                announce(folder, kept)
                print(*(urls or ["no server answers now"]), sep="\n", flush=True)
            if endpoint.notice and time.monotonic() - said > _SAY_EVERY_S:
                print(endpoint.notice, file=sys.stderr, flush=True)
                said = time.monotonic()
            if time.monotonic() - beaten > HEARTBEAT_S:
                heartbeat(folder, kept.identity)
                beaten = time.monotonic()
    finally:
        if starting is not None:
            starting.cancel()
            await asyncio.wait([starting])


def _placement(pipeline: Pipeline) -> Placement:
    """Return where the servers run: on the cluster that the pipeline joins, else on this machine."""
    if pipeline.run.executor != "inline" and pipeline.run.ray_address is not None:
        from tracefactory.engine.executors.ray import RayPlacement

        return RayPlacement(pipeline.run.ray_address)
    return LocalPlacement()
