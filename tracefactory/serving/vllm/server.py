"""A vLLM server under guard: `python -m tracefactory.serving.vllm.server --python P --host H --arguments JSON`.

vLLM runs in an interpreter of its own, which need not have this package, and splits into an API server, an engine and
workers. When only the API server is killed, the others live on and keep their GPU (seen with vLLM 0.32). So a small
guard process starts vLLM in a process group, and ends the whole group when vLLM ends, when it is asked to, or when its
own parent is gone. The guard is not its owner's child but a grandchild: a worker of Ray that ends kills its children
with SIGKILL, and a guard killed so could end nothing. The child between them only waits.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path
from types import FrameType

from tracefactory.core.processes import end_with_parent, kill_group, report_ready, signal_at_parents_death
from tracefactory.serving.vllm.plugins.environment import write_site

_MODULE = "vllm.entrypoints.openai.api_server"
_GRACE_S = 3.0  # for vLLM to end by itself; what it leaves behind is killed
_FOREIGN = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")  # would point vLLM's interpreter at the packages of this one


class _Asked(BaseException):  # raised out of a wait by the signal handler
    pass


def main() -> None:
    """Serve until vLLM ends, the parent is gone, or SIGTERM or Ctrl-C comes."""
    parser = argparse.ArgumentParser(description="A vLLM server that leaves no process behind.")
    parser.add_argument("--python", required=True, help="the interpreter of the environment that holds vLLM")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--arguments", type=json.loads, required=True, help="a JSON list: arguments of the API server")
    parser.add_argument("--plugin", default="", help="a plugin of serving/vllm/plugins, to run in vLLM")
    parser.add_argument("--ready-fd", type=int, required=True, help="the pipe to report port and process group on")
    options = parser.parse_args()
    between = os.getpid()
    signal_at_parents_death()
    guard = os.fork()
    if guard:
        os.close(options.ready_fd)
        raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(guard, 0)[1]))
    os.setsid()
    _guard(options, between)


def _guard(options: argparse.Namespace, parent: int) -> None:
    """Run vLLM until it ends or is no longer wanted; raises SystemExit."""
    for one in (signal.SIGTERM, signal.SIGINT):
        signal.signal(one, _asked)
    reserved = reserve_port(options.host)
    port = reserved.getsockname()[1]
    environ = {name: value for name, value in os.environ.items() if name not in _FOREIGN}
    site = tempfile.TemporaryDirectory(prefix="tracefactory-vllm-")
    if options.plugin:
        write_site(Path(site.name), options.plugin)
        environ["PYTHONPATH"] = site.name
    command = [options.python, "-m", _MODULE, "--host", options.host, "--port", str(port), *options.arguments]
    # Started before there is a second thread here: preexec_fn is safe only then.
    vllm = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=signal_at_parents_death,  # noqa: PLW1509
        env=environ,
    )
    try:
        end_with_parent(signal.SIGTERM)
        if os.getppid() != parent:
            raise _Asked  # it was gone before the kernel was asked to tell
        report_ready(options.ready_fd, port=port, group=vllm.pid)
        status = vllm.wait()
    except _Asked:
        status = 0
    finally:
        _end(vllm)
        site.cleanup()
    raise SystemExit(status if status >= 0 else 128 - status)


def reserve_port(host: str) -> socket.socket:
    """Return a bound socket on a free port that nobody else is given; vLLM, which sets SO_REUSEADDR, can bind it too.

    It does not listen, so it draws no connection. Keep it open for as long as the port must stay reserved.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    reserved = socket.socket(family, socket.SOCK_STREAM)
    reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    reserved.bind((host, 0))
    return reserved


def _asked(number: int, frame: FrameType | None) -> None:
    raise _Asked


def _end(vllm: subprocess.Popen[bytes]) -> None:
    for one in (signal.SIGTERM, signal.SIGINT):
        signal.signal(one, signal.SIG_IGN)  # asked twice: already at it
    vllm.terminate()
    with suppress(subprocess.TimeoutExpired):
        vllm.wait(_GRACE_S)
    kill_group(vllm.pid)
    vllm.wait()


if __name__ == "__main__":
    main()
