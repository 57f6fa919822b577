"""A guarded vLLM server: `python -m tracefactory.serving.vllm.server --python P --host H --arguments JSON`.

vLLM runs in its own interpreter, which need not have this package, and splits into an API server, an engine and
workers. When only the API server is killed, the others keep running and keep their GPU (seen with vLLM 0.32). A small
guard process therefore starts vLLM in a process group, and kills the whole group when vLLM exits, when the guard
receives a signal, or when its parent exits. The guard is a grandchild of its owner: a Ray worker that exits kills its
children with SIGKILL, and a killed guard could not clean up. The child in between only waits.
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
from tracefactory.serving.vllm.plugins.plugin_dir import write_plugin

_MODULE = "vllm.entrypoints.openai.api_server"
_GRACE_S = 3.0  # for vLLM to exit by itself; then its process group is killed
_REMOVED = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")  # they would make vLLM's interpreter import our packages


class _StopRequested(BaseException):  # raised by the signal handler
    pass


def main() -> None:
    """Serve until vLLM or the parent exits, or until SIGTERM or Ctrl-C."""
    parser = argparse.ArgumentParser(description="Run a vLLM server and clean up all of its processes.")
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
    """Run vLLM until it exits or a stop is requested; raises SystemExit."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _request_stop)
    reserved = reserve_port(options.host)
    port = reserved.getsockname()[1]
    environ = {name: value for name, value in os.environ.items() if name not in _REMOVED}
    plugin_dir = tempfile.TemporaryDirectory(prefix="tracefactory-vllm-")
    if options.plugin:
        write_plugin(Path(plugin_dir.name), options.plugin)
        environ["PYTHONPATH"] = plugin_dir.name
    command = [options.python, "-m", _MODULE, "--host", options.host, "--port", str(port), *options.arguments]
    # preexec_fn is safe only while this process has one thread.
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
            raise _StopRequested  # the parent exited before the kernel was asked for a signal
        report_ready(options.ready_fd, port=port, group=vllm.pid)
        status = vllm.wait()
    except _StopRequested:
        status = 0
    finally:
        _stop(vllm)
        plugin_dir.cleanup()
    raise SystemExit(status if status >= 0 else 128 - status)


def reserve_port(host: str) -> socket.socket:
    """Return a socket bound to a free port. No other process is given the port; vLLM can bind it with SO_REUSEADDR.

    The socket does not listen, so it receives no connections. Keep it open as long as the port must stay reserved.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    reserved = socket.socket(family, socket.SOCK_STREAM)
    reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    reserved.bind((host, 0))
    return reserved


def _request_stop(number: int, frame: FrameType | None) -> None:
    raise _StopRequested


def _stop(vllm: subprocess.Popen[bytes]) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)  # a second signal must not interrupt the cleanup
    vllm.terminate()
    with suppress(subprocess.TimeoutExpired):
        vllm.wait(_GRACE_S)
    kill_group(vllm.pid)
    vllm.wait()


if __name__ == "__main__":
    main()
