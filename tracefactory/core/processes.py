"""Child processes that end with their parent, however the parent ends.

A model server that outlives a killed run would keep memory, GPUs and a port. There are two mechanisms. The child reads
its standard input, a pipe whose other end is held by the parent, and exits at end of file. On Linux, the kernel also
kills the child when the thread that started it ends (prctl(2), PR_SET_PDEATHSIG); this works even when the child's
interpreter is busy or a fork of the parent holds the pipe.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from tracefactory.core.errors import RunError

PASSIVE_THREADS: Mapping[str, str] = {"OMP_WAIT_POLICY": "passive"}
"""Variables of a process that computes: threads of OpenMP that spin while they wait for each other stall all of them
where another busy process is on their cores. It reads them when it is loaded; a value of the user's is to be kept."""
_PR_SET_PDEATHSIG = 1  # <sys/prctl.h>
_TAIL = 2000  # characters of a log shown in an error


def end_with_parent(how: signal.Signals = signal.SIGKILL) -> None:
    """End this process, which was started by `Child.spawn`, as soon as its parent has ended.

    Args:
        how: the signal. SIGKILL ends the process without cleanup; a child that must end its own child processes uses
            SIGTERM and handles it.
    """
    signal_at_parents_death(how)

    def leave_at_end_of_file() -> None:
        while os.read(0, 4096):
            pass
        if how == signal.SIGKILL:
            os._exit(0)
        os.kill(os.getpid(), how)

    # This also works if the parent ended before the call of prctl, because its end of the pipe is closed by then.
    threading.Thread(target=leave_at_end_of_file, name="parent-watch", daemon=True).start()


def signal_at_parents_death(how: signal.Signals = signal.SIGKILL) -> None:
    """On Linux, let the kernel send a signal to this process when the thread that started it ends.

    Args:
        how: the signal.

    Raises:
        OSError: when the kernel refuses.
    """
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(_PR_SET_PDEATHSIG, how, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")


def kill_group(group: int) -> None:
    """Send SIGKILL to all processes of a process group, which may have ended already."""
    with suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)


def report_ready(ready_fd: int, **facts: Any) -> None:
    """Tell the parent of this process that the server in it is ready.

    Args:
        ready_fd: the value of the argument `--ready-fd`.
        facts: values for the parent, such as the port.
    """
    with os.fdopen(ready_fd, "w") as pipe:
        pipe.write(json.dumps(facts) + "\n")


class Child:
    """A running child process that has reported that it is ready; `facts` are the values that it reported.

    Start it from a thread that lives as long as the child is needed (see the module's docstring). The child has its own
    session: Ctrl-C in the terminal reaches only the parent, which can then finish the requests in flight.
    """

    def __init__(self, process: subprocess.Popen[bytes], log_file: Path, facts: dict[str, Any]) -> None:
        self._process = process
        self.log_file = log_file
        self.facts = facts

    @classmethod
    async def spawn(
        cls,
        name: str,
        argv: Sequence[str],
        log_file: Path,
        *,
        ready_timeout_s: float,
        environ: Mapping[str, str] | None = None,
    ) -> Child:
        """Start a process and wait until it reports that it is ready.

        Args:
            name: the name of the process, for messages.
            argv: its command line, to which `--ready-fd N` is added.
            log_file: the file that its output is appended to.
            ready_timeout_s: the maximum time until it is ready, in seconds.
            environ: its complete environment; by default that of this process.

        Raises:
            RunError: when the process exits or is not ready in time, with the end of its log.
        """
        process, read_fd = _start([*argv], log_file, environ)
        child = cls(process, log_file, {})
        try:
            line = await asyncio.wait_for(_first_line(read_fd), ready_timeout_s)
        except TimeoutError:
            await child.stop(grace_s=0)
            message = f"{name} was not ready after {ready_timeout_s:g} s; the end of {log_file}"
            raise RunError(f"{message}:\n{child.log_tail()}") from None
        except BaseException:
            await child.stop(grace_s=0)
            raise
        if not line:
            code = await asyncio.to_thread(process.wait)
            await child.stop()
            raise RunError(f"{name} ended with status {code} at its start; the end of {log_file}:\n{child.log_tail()}")
        child.facts = json.loads(line)
        return child

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether the process is running. A process that has ended is reaped."""
        return self._process.poll() is None

    def log_tail(self) -> str:
        """Return the last lines of its log."""
        return self.log_file.read_text("utf-8", "replace")[-_TAIL:]

    async def stop(self, *, grace_s: float = 5.0) -> None:
        """End the process. A second call has no effect.

        Args:
            grace_s: the seconds between closing its standard input, at which it should exit, and killing it.
        """
        if self._process.stdin is not None and not self._process.stdin.closed:
            self._process.stdin.close()
        try:
            await asyncio.to_thread(self._process.wait, grace_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            await asyncio.to_thread(self._process.wait)


def _start(argv: list[str], log_file: Path, environ: Mapping[str, str] | None) -> tuple[subprocess.Popen[bytes], int]:
    """Start the process from the calling thread, which PR_SET_PDEATHSIG watches. Return it and its ready pipe."""
    log_file.parent.mkdir(parents=True, exist_ok=True)
    read_fd, write_fd = os.pipe()
    try:
        with log_file.open("ab") as log:
            process = subprocess.Popen(
                [*argv, "--ready-fd", str(write_fd)],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                pass_fds=(write_fd,),
                env=environ,
                start_new_session=True,
            )
    except OSError:
        os.close(read_fd)
        raise
    finally:
        os.close(write_fd)
    return process, read_fd


async def _first_line(read_fd: int) -> bytes:
    reader = asyncio.StreamReader()
    pipe = os.fdopen(read_fd, "rb", 0)
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), pipe
    )
    try:
        return await reader.readline()
    finally:
        transport.close()
