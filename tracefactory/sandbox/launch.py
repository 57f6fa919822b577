"""Start the sandbox with one program, collect its output within the limits, and kill all of its processes."""

from __future__ import annotations

import ast
import contextlib
import logging
import marshal
import os
import random
import secrets
import selectors
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import psutil

from tracefactory.core.rows import Frozen
from tracefactory.sandbox import bubblewrap
from tracefactory.sandbox.cgroups import group
from tracefactory.sandbox.inside.status import STATUS
from tracefactory.sandbox.root import minimal_root
from tracefactory.sandbox.usage import Meter, Usage

_START = Path(__file__).parent / "inside/start.py"
_PATIENCE = 0.2  # seconds between two looks at the program
_HARNESS_BYTES = 32 << 20  # memory of the processes around the program
_HARNESS_PROCESSES = 4
_DYNAMIC_USERS = range(61184, 65520)  # as systemd's DynamicUser= takes them
_NO_LOGIN_USERS = range(1_000_000_000, 2_000_000_000)
_log = logging.getLogger(__name__)


class Limits(Frozen):
    """Resource limits of one program: `seconds` of CPU time, memory and files in MB, processes, output in bytes.

    `wall` is the wall time in seconds after which a waiting program is killed, by default 5 + 4 * `seconds`, so that
    programs do not fail on a busy machine.
    """

    seconds: float = 5.0
    wall: float | None = None
    memory_mb: int = 1024
    file_mb: int = 16
    processes: int = 16
    output_bytes: int = 1 << 20

    @property
    def wall_seconds(self) -> float:
        """The limit on wall time in seconds."""
        return 5.0 + 4.0 * self.seconds if self.wall is None else self.wall


@dataclass(frozen=True)
class Ended:
    """How a start of the sandbox ended.

    `how` is "exit"; "output" after too much of it; "memory" when all processes together took too much; "cpu_time" when
    the program used up its processor time; "tests_time" when the tests used up theirs while the program used hardly
    any; "left" when the program exited before the tests ended; "stopped" when it stopped itself or the tests with a
    signal; or "wall_time".
    """

    how: str
    code: int | None
    stdout: str
    stderr: str
    reply: Mapping[str, Any]
    usage: Usage


@dataclass(frozen=True)
class Way:
    """A way to confine programs: `outside` is "own" or "bubblewrap", `allow` the protections that may be missing."""

    outside: str
    allow: frozenset[str] = frozenset()


def launch(way: Way, config: Mapping[str, Any], limits: Limits, tests: Mapping[str, Any] | None = None) -> Ended:
    """Start the sandbox with one program and wait until it has ended.

    Args:
        way: how to confine it.
        config: what `sandbox.inside.main` is to do.
        limits: the resource limits.
        tests: the tests, see `sandbox.inside.tests.run`.

    Returns:
        How it ended. The reply comes from the processes around the program, which cannot write any.

    Raises:
        SandboxError: when the sandbox did not start or broke.
    """
    token, begin, memory = secrets.token_hex(32), time.monotonic(), (limits.memory_mb << 20) + _HARNESS_BYTES
    with contextlib.ExitStack() as closing:
        folder = closing.enter_context(tempfile.TemporaryDirectory(prefix="tracefactory-", ignore_cleanup_errors=True))
        os.chmod(folder, 0o777)  # the program may run as another user
        root, user = minimal_root(), _user()
        cage = group(memory, limits.processes + _HARNESS_PROCESSES)
        if cage is not None:
            closing.callback(cage.close)
        command = [*(cage.entering() if cage else []), *_outside(way, user), sys.executable, "-I", str(_START)]
        process, config_out, result_in, tests_out = _started(command, closing)
        host = {"outside": way.outside, "allow": sorted(way.allow), "pid": process.pid, "token": token}
        place = {"user": user, "folder": folder, "paths": root.paths, "links": root.links, "work": root.work}
        nothing = {"probe": None, "code": "", "stdin": "", "stdio": False}
        _write(config_out, {**host, **place, **nothing, **limits.model_dump(), **config})
        writer = threading.Thread(target=_write, args=(tests_out, {**(tests or {}), "token": token}))
        writer.start()  # writing more than the pipe's buffer blocks until the tests start
        meter = Meter(process.pid, begin)
        out_of_memory = cage.out_of_memory if cage else lambda: meter.memory > memory
        how, parts, usage = _collect(process, result_in.fileno(), limits, meter, out_of_memory)
        writer.join()
        if out_of_memory():  # the last process to pass it may have been the last to run
            how = "memory"
    stdout, stderr = (part.decode("utf-8", "replace") for part in parts[:2])
    replies = _replies(parts[2], token)
    if not replies or how in ("broken", "refused"):
        why = replies.get("missing") or stderr.strip()[-300:]
        raise SandboxError(f"the sandbox failed ({how}, code {process.returncode}): {why}")
    return Ended(how, process.returncode, stdout, stderr, replies, usage)


def _started(
    command: Sequence[str], closing: contextlib.ExitStack
) -> tuple[subprocess.Popen[bytes], IO[bytes], IO[bytes], IO[bytes]]:
    """Start the process; return it with the ends of its pipes: for its configuration, its replies and its tests."""
    pipes = [os.pipe() for _ in range(3)]
    (config_in, config_out), (result_in, result_out), (tests_in, tests_out) = pipes
    modes = ((config_out, "wb"), (result_in, "rb"), (tests_out, "wb"))
    own = [closing.enter_context(os.fdopen(end, mode)) for end, mode in modes]
    of_the_process = (config_in, result_out, tests_in)
    try:
        process = subprocess.Popen(
            [*command, *map(str, of_the_process)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=of_the_process,
            env={},
            cwd="/",
            start_new_session=True,
        )
    finally:
        for descriptor in of_the_process:
            os.close(descriptor)
    closing.enter_context(process)
    for file in own:  # closed before the process is waited for, which may be reading
        closing.callback(file.close)
    return process, own[0], own[1], own[2]


class SandboxError(RuntimeError):
    """The sandbox did not start or broke, so nothing is known about the program."""


def _outside(way: Way, user: int | None) -> list[str]:
    """Return the beginning of the command: what confines the process before it runs."""
    program = bubblewrap.find() if way.outside == "bubblewrap" else None
    return bubblewrap.command(program, minimal_root(), user or os.geteuid()) if program else []


def _user() -> int | None:
    """Return the id of a user and group that nothing belongs to, as root; None for other users, who cannot change."""
    if os.geteuid() != 0:
        return None
    mapped = Path("/proc/self/uid_map").read_text().split()
    many = int(mapped[0]) == 0 and int(mapped[2]) > _NO_LOGIN_USERS.stop
    return random.SystemRandom().choice(_NO_LOGIN_USERS if many else _DYNAMIC_USERS)


def _write(file: IO[bytes], config: dict[str, Any]) -> None:
    try:
        file.write(marshal.dumps(config))
        file.close()
    except BrokenPipeError:
        _log.debug("the sandbox exited before it read its program")  # its end says why


def _replies(data: bytes, token: str) -> Mapping[str, Any]:
    """Return what the sandbox wrote: what is missing, once it has started, and how the tests ended."""
    replies: dict[str, Any] = {}
    for line in data.splitlines():  # written by our processes around the program
        reply = ast.literal_eval(line.decode())
        if secrets.compare_digest(reply.pop("token", ""), token):
            replies |= reply
    return replies


def _collect(
    process: subprocess.Popen[bytes], result: int, limits: Limits, meter: Meter, out_of_memory: Callable[[], bool]
) -> tuple[str, list[bytes], Usage]:
    """Read the output of the program until it exits or passes a limit; then kill its process tree."""
    outputs = [pipe.fileno() for pipe in (process.stdout, process.stderr) if pipe is not None]
    parts: dict[int, list[bytes]] = {descriptor: [] for descriptor in (*outputs, result)}
    sizes, how, end = 0, "exit", meter.begin + limits.wall_seconds
    used: float | None = None  # processor time, known when the process has been waited for
    with selectors.DefaultSelector() as selector:
        for descriptor in parts:
            selector.register(descriptor, selectors.EVENT_READ)
        while selector.get_map() and how == "exit":
            left = end - time.monotonic()
            patience = min(max(left, 0), _PATIENCE)
            ready = selector.select(patience)
            meter.woken(patience)
            meter.sample()
            if not ready and left > 0 and (used := _reaped(process)) is not None:
                break  # a process that outlived the program holds the pipes open
            for key, _ in ready:
                chunk = os.read(key.fd, 1 << 16)
                if not chunk:
                    selector.unregister(key.fd)
                parts[key.fd].append(chunk)
                sizes += len(chunk)
            how = _passed_limit(limits, sizes, left, out_of_memory)
    while how == "exit" and used is None and (used := _reaped(process)) is None:
        time.sleep(0.005)
        meter.sample()
        how = _passed_limit(limits, sizes, end - time.monotonic(), out_of_memory)
    if used is None:  # otherwise the kernel has told what it used
        meter.sample(last=True)
    _kill_tree(process)
    used = used if used is not None else _reaped(process, wait=True)
    if how == "exit":
        how = {code: name for name, code in STATUS.items()}.get(process.returncode, how)
    return how, [b"".join(chunks)[: limits.output_bytes] for chunks in parts.values()], meter.usage(used or 0.0)


def _passed_limit(limits: Limits, output: int, left: float, out_of_memory: Callable[[], bool]) -> str:
    if output > limits.output_bytes:
        return "output"
    if out_of_memory():
        return "memory"
    return "wall_time" if left <= 0 else "exit"


def _reaped(process: subprocess.Popen[bytes], *, wait: bool = False) -> float | None:
    """Return the processor time of a process that has exited, with that of its descendants; None while it runs."""
    if process.returncode is not None:
        return 0.0
    try:
        pid, status, used = os.wait4(process.pid, 0 if wait else os.WNOHANG)
    except ChildProcessError:  # signals of children are ignored here, so the kernel has reaped it
        process.wait()
        return 0.0
    if not pid:
        return None
    process.returncode = os.waitstatus_to_exitcode(status)
    return used.ru_utime + used.ru_stime


def _kill_tree(process: subprocess.Popen[bytes]) -> None:
    """Kill the process tree: its group, processes that left the group, and with them the process namespace."""
    with contextlib.suppress(psutil.NoSuchProcess):  # the process has exited, and its first process killed the rest
        for child in psutil.Process(process.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        _log.debug("the program has already exited")
