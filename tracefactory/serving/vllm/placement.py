"""Place replicas on this machine as child processes with exclusive GPUs; executors place them on clusters."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from tracefactory.core.errors import UserError
from tracefactory.serving.vllm.replica import PlacedReplica, Replica, ServerPlan

_VISIBLE = "CUDA_VISIBLE_DEVICES"


class LocalPlacement:
    """Places replicas on this machine. One instance assigns all of its GPUs, each to at most one replica."""

    def __init__(self) -> None:
        self._free: list[str] | None = None

    async def place(self, plan: ServerPlan, log_file: Path) -> PlacedReplica:
        """Start a replica on free GPUs.

        Raises:
            UserError: when too few GPUs are free.
        """
        if not plan.gpus:
            return Replica(plan, log_file)
        if self._free is None:
            self._free = visible_gpus(os.environ)
        if len(self._free) < plan.gpus:
            raise UserError(
                f"{plan.name} needs {plan.gpus} GPUs, but only {len(self._free)} GPUs of this machine are free"
            )
        gpus = self._free[: plan.gpus]
        del self._free[: plan.gpus]
        return _GpuReplica(plan, log_file, gpus, self._free)


class _GpuReplica(Replica):
    """A replica that returns its GPUs to `free` when it stops."""

    def __init__(self, plan: ServerPlan, log_file: Path, gpus: list[str], free: list[str]) -> None:
        super().__init__(plan, log_file, environ={_VISIBLE: ",".join(gpus)})
        self._gpus, self._free = gpus, free

    async def stop(self) -> None:
        """Stop the server and every process it started; a second call returns no GPUs."""
        await super().stop()
        self._free += self._gpus
        self._gpus = []


def visible_gpus(environ: Mapping[str, str]) -> list[str]:
    """Return the ids of the GPUs that this process may use: CUDA_VISIBLE_DEVICES, or what nvidia-smi lists."""
    if _VISIBLE in environ:
        return [gpu for gpu in environ[_VISIBLE].split(",") if gpu.strip()]
    if shutil.which("nvidia-smi") is None:
        return []
    query = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
    listed = subprocess.run(query, capture_output=True, text=True, check=False)
    return listed.stdout.split() if listed.returncode == 0 else []
