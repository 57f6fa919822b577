"""Join a Ray cluster, or start one on this machine: authentication, and a message where Ray would wait and fail.

Ray sends a token by itself only to a cluster that it finds by itself (`auto` after `ray start` on the same machine).
Here it is sent to every cluster when there is one: from RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token. A
cluster without authentication ignores it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import ray
from ray._private.authentication.authentication_token_setup import maybe_enable_token_auth_if_token_available
from ray._private.services import canonicalize_bootstrap_address
from ray._raylet import AuthenticationTokenLoader  # type: ignore[attr-defined]

import tracefactory
from tracefactory.core.errors import Interrupted, RunError, UserError
from tracefactory.core.pipeline import RunOptions

CONNECT_S = 5.0
_PROBE_S = 30.0
_REFUSED = 3
_PROBE = f"""
import sys
from ray._raylet import GcsClient
from ray.exceptions import AuthenticationError
try:
    GcsClient(address=sys.argv[1])
except AuthenticationError:
    sys.exit({_REFUSED})
"""
_PACKAGE = str(Path(tracefactory.__file__).parent)
_SHORT = {  # seconds of Ray's own time-outs, which are a minute and more
    "RAY_gcs_rpc_server_connect_timeout_s": "5",
    "RAY_gcs_rpc_server_reconnect_timeout_s": "5",
}


def is_cluster(run: RunOptions) -> bool:
    """Return whether a run joins a cluster: by its options, or inside a Ray job, which names it in RAY_ADDRESS."""
    return run.ray_address not in (None, "local") or (run.ray_address is None and "RAY_ADDRESS" in os.environ)


def connect(run: RunOptions) -> None:
    """Join the cluster of a run or start one on this machine. Call it from the main thread.

    Raises:
        UserError: when the address or the token has to be changed.
        RunError: when the cluster does not answer, or does not fit this process.
        Interrupted: when SIGTERM arrived meanwhile.
    """
    if ray.is_initialized():
        return
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # an actor without GPUs keeps CUDA_VISIBLE_DEVICES
    # It warns that a token is used, as it should be.
    logging.getLogger(maybe_enable_token_auth_if_token_available.__module__).setLevel(logging.ERROR)
    if run.ray_dashboard and find_spec("aiohttp_cors") is None:  # of the packages of ray[default]
        raise UserError("run: ray_dashboard: Ray's dashboard is not installed: pip install 'ray[default]'")
    address = _answering("auto" if run.ray_address is None else run.ray_address) if is_cluster(run) else "local"
    try:
        with _kept_handlers():
            ray.init(
                address=address,
                include_dashboard=run.ray_dashboard if address == "local" else None,
                log_to_driver=False,
                logging_level="ERROR",
                configure_logging=False,
                runtime_env=_runtime_env(run) or None,
            )
    except SystemExit:  # by the handler of SIGTERM that Ray has while it starts
        raise Interrupted from None
    except (OSError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())
        where = "on this machine" if address == "local" else f"with the cluster at {address}"
        raise RunError(f"Ray does not start {where}: {reason}") from error


async def head_lost(after_s: float) -> None:
    """Return when the head of the joined cluster has not answered for some time.

    Args:
        after_s: that time, in seconds.
    """
    host, _, port = ray.get_runtime_context().gcs_address.rpartition(":")
    answered = time.monotonic()
    while time.monotonic() - answered < after_s:
        await asyncio.sleep(CONNECT_S)
        try:
            _, writer = await asyncio.wait_for(asyncio.open_connection(host.strip("[]"), int(port)), CONNECT_S)
        except OSError:  # a time-out is one, too
            continue
        writer.close()
        answered = time.monotonic()


def check_gpus(what: str, gpus: int, *, cluster: bool) -> None:
    """Raise UserError when there is only this machine, which has too few GPUs; a cluster can grow."""
    has = int(ray.cluster_resources().get("GPU", 0))
    if not cluster and has < gpus:
        raise UserError(f"{what} needs {gpus} GPUs, but this machine has {has}")


def _runtime_env(run: RunOptions) -> dict[str, Any]:
    found: dict[str, Any] = dict(run.runtime_env)
    if run.send_package:
        others = found.get("py_modules") or []
        found["py_modules"] = [*(others if isinstance(others, list) else [others]), _PACKAGE]
    return found


def _answering(address: str) -> str:
    """Return the address of a cluster as HOST:PORT, when it answers and takes our token.

    Raises:
        UserError: when the address or the token has to be changed.
        RunError: when nothing answers there.
    """
    if "://" in address:
        raise UserError(
            f"run: ray_address: {address!r} is not supported, because the run itself is a part of the cluster: run the "
            "command on one of its nodes, or by `ray job submit`, with `ray_address: auto`"
        )
    try:
        found = canonicalize_bootstrap_address(address) if address else ""
        if found is None:
            raise UserError(
                "run: ray_address: auto finds no cluster: RAY_ADDRESS is not set, and `ray start` has not been run on "
                "this machine; write HOST:PORT of the head"
            )
        host, _, port = found.rpartition(":")
        number = int(port)
    except (ValueError, OSError) as error:
        raise UserError(f"run: ray_address: {address!r} is neither auto nor HOST:PORT of a head ({error})") from error
    try:
        socket.create_connection((host.strip("[]"), number), CONNECT_S).close()
    except OSError as error:
        raise RunError(
            f"no Ray cluster answers at {found} ({error}); `ray status` on its head shows whether it runs"
        ) from (error)
    _check_token(found)
    return f"{host}:{number}"


def _check_token(address: str) -> None:
    """Let Ray send the token of this user, and ask the cluster in a process of its own, which says so if it is refused.

    Raises:
        UserError: when the cluster refuses.
        RunError: when it does not speak Ray's protocol.
    """
    maybe_enable_token_auth_if_token_available(warn_if_disabled=False)
    try:
        asked = subprocess.run(
            [sys.executable, "-c", _PROBE, address],
            env={**os.environ, **_SHORT},
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_PROBE_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise RunError(f"what listens at {address} does not answer as the head of a Ray cluster does") from None
    if asked.returncode == _REFUSED:
        raise UserError(f"the Ray cluster at {address} {_token_remedy()}")
    if asked.returncode:
        last = (asked.stderr.strip().splitlines() or [f"exit status {asked.returncode}"])[-1]
        raise RunError(f"what listens at {address} does not answer as the head of a Ray cluster does ({last})")


def _token_remedy() -> str:
    mode = os.environ.get("RAY_AUTH_MODE", "").lower()
    if mode and mode != "token":
        return f"asks for a token, but RAY_AUTH_MODE={mode} keeps it back: unset RAY_AUTH_MODE"
    how = "`ray get-auth-token` on its head prints the right one: set RAY_AUTH_TOKEN to it"
    if not AuthenticationTokenLoader.instance().has_token(ignore_auth_mode=True):
        return f"asks for a token, and there is none here: {how}, or copy it to ~/.ray/auth_token"
    places = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
    place = next((name for name in places if os.environ.get(name)), "~/.ray/auth_token")
    return f"refuses the token of {place}; {how}"


@contextmanager
def _kept_handlers() -> Iterator[None]:
    """Put our handlers of signals back, which Ray replaces when it starts: by one that prints a stack and aborts."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {one: signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for one, handler in before.items():
            if handler is not None:
                signal.signal(one, handler)
