"""Run untrusted Python programs in a sandbox with kernel protections and resource limits; all processes are killed.

The program gets an empty environment, an empty temporary directory, no network, read-only files and no view of other
processes, where the kernel allows namespaces; `protections()` returns which protections are active on this machine.
Limits on time, memory, file size, processes and output apply everywhere on Linux. What a program used is measured
(`tracefactory.sandbox.usage`), so that a time-out of the program can be told from one of a busy machine.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO

import psutil

from tracefactory.core.rows import Frozen
from tracefactory.sandbox.usage import Meter, Usage

_CHILD = Path(__file__).with_name("child.py")
_TESTS_OUT_OF_TIME, _OUT_OF_TIME = 123, 124
_PATIENCE = 0.2  # seconds between two looks at the program
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
class Protections:
    """The active protections ("user", "processes", "network", "files") and the missing ones with their reasons."""

    active: tuple[str, ...]
    missing: tuple[str, ...]
    nobody: bool

    def __str__(self) -> str:
        active = ", ".join(("limits", "empty environment", *self.active))
        return f"sandbox protections active: {active}" + (
            f"; missing: {'; '.join(self.missing)}" if self.missing else ""
        )


@dataclass(frozen=True)
class RunResult:
    """The result of a program: how it ended, its output, whether all tests passed, and what it used.

    `ended` is "exit"; "output" after too much of it; "cpu_time" when the program used up its processor time;
    "tests_time" when the tests used up theirs while the program used hardly any; or "wall_time".
    """

    ended: str
    code: int | None
    stdout: str
    stderr: str
    passed: bool
    usage: Usage

    @property
    def seconds(self) -> float:
        """The wall time of the run."""
        return self.usage.wall


@lru_cache(maxsize=1)
def protections() -> Protections:
    """Probe the sandbox, log which protections are active, and cache the result for this process."""
    attempts = (True, False) if os.geteuid() == 0 else (False,)
    errors: list[str] = []
    for nobody in attempts:
        outcome, reply = _start({**_config(Limits(), probe=True), "nobody": nobody}, Limits())
        if outcome.code == 0 and reply:
            found = json.loads(reply)
            missing = tuple(f"{name} ({why})" for name, why in found["missing"].items())
            result = Protections(tuple(found["active"]), missing, nobody)
            _log.log(logging.WARNING if result.missing else logging.INFO, "%s", result)
            return result
        errors.append(outcome.stderr.strip()[-300:])
    raise RuntimeError(f"the sandbox does not start on this machine: {errors[-1]}")


def run_tests(code: str, tests: Sequence[str], limits: Limits) -> RunResult:
    """Run a program, then tests on its names in a separate process. The result passed if every test finished.

    Args:
        code: the program.
        tests: Python programs that use the names of the program.
        limits: the resource limits.
    """
    config = {**_config(limits), "code": code, "nobody": protections().nobody}
    return _start(config, limits, tests)[0]


def run_program(code: str, stdin: str, limits: Limits) -> RunResult:
    """Run a program as a script.

    Args:
        code: the program.
        stdin: the text of its standard input.
        limits: the resource limits.
    """
    config = {**_config(limits), "code": code, "stdin": stdin, "stdio": True, "nobody": protections().nobody}
    return _start(config, limits)[0]


def _config(limits: Limits, *, probe: bool = False) -> dict[str, object]:
    return {"probe": probe, "stdio": False, "code": "", "stdin": "", **limits.model_dump()}


def _start(config: dict[str, object], limits: Limits, tests: Sequence[str] = ()) -> tuple[RunResult, bytes]:
    folder = tempfile.mkdtemp(prefix="tracefactory-")
    os.chmod(folder, 0o777)  # the program may run as another user
    token = secrets.token_hex(32)
    pipes = [os.pipe() for _ in range(3)]  # configuration in, result out, tests in
    (config_in, config_out), (result_in, result_out), (tests_in, tests_out) = pipes
    begin = time.monotonic()
    try:
        process = subprocess.Popen(
            [sys.executable, "-I", str(_CHILD), str(config_in), str(result_out), str(tests_in)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=(config_in, result_out, tests_in),
            env={},
            cwd="/",
            start_new_session=True,
        )
        for descriptor in (config_in, result_out, tests_in):
            os.close(descriptor)
        with process, os.fdopen(config_out, "wb") as file, os.fdopen(tests_out, "wb") as tests_file:
            _write_json(file, {**config, "folder": folder})
            writer = threading.Thread(target=_write_json, args=(tests_file, {"tests": list(tests), "token": token}))
            writer.start()  # writing more than the pipe's buffer blocks until the tests start
            ended, stdout, stderr, reply, usage = _collect(process, result_in, limits, begin)
            writer.join()
    finally:
        os.close(result_in)
        shutil.rmtree(folder, ignore_errors=True)
    texts = [part.decode("utf-8", "replace") for part in (stdout, stderr)]
    passed = ended == "exit" and process.returncode == 0 and secrets.compare_digest(reply, token.encode())
    return RunResult(ended, process.returncode, texts[0], texts[1], passed, usage), reply


def _write_json(file: IO[bytes], config: dict[str, object]) -> None:
    try:
        file.write(json.dumps(config).encode())
        file.close()
    except BrokenPipeError:
        _log.warning("the sandbox exited before it read its program")


def _collect(
    process: subprocess.Popen[bytes], result: int, limits: Limits, begin: float
) -> tuple[str, bytes, bytes, bytes, Usage]:
    """Read the output of the program until it exits, times out or writes too much; then kill its process tree."""
    outputs = [pipe.fileno() for pipe in (process.stdout, process.stderr) if pipe is not None]
    parts: dict[int, list[bytes]] = {descriptor: [] for descriptor in (*outputs, result)}
    sizes, ended, meter = 0, "exit", Meter(process.pid, begin)
    used: float | None = None  # processor time, known when the process has been waited for
    with selectors.DefaultSelector() as selector:
        for descriptor in parts:
            selector.register(descriptor, selectors.EVENT_READ)
        while selector.get_map():
            left = begin + limits.wall_seconds - time.monotonic()
            patience = min(max(left, 0), _PATIENCE)
            ready = selector.select(patience)
            meter.woken(patience)
            meter.sample()
            if left <= 0:
                ended = "wall_time"
                break
            if not ready and (used := _reaped(process)) is not None:
                break  # a process that outlived the program holds the pipes open
            for key, _ in ready:
                chunk = os.read(key.fd, 1 << 16)
                if not chunk:
                    selector.unregister(key.fd)
                parts[key.fd].append(chunk)
                sizes += len(chunk)
            if sizes > limits.output_bytes:
                ended = "output"
                break
    while ended == "exit" and used is None and (used := _reaped(process)) is None:
        time.sleep(0.005)
        meter.sample()
        if time.monotonic() > begin + limits.wall_seconds:
            ended = "wall_time"
    if used is None:  # otherwise the kernel has told what it used
        meter.sample(last=True)
    _kill_tree(process)
    used = used if used is not None else _reaped(process, wait=True)
    if ended == "exit":
        ended = {_OUT_OF_TIME: "cpu_time", _TESTS_OUT_OF_TIME: "tests_time"}.get(process.returncode, ended)
    out, err, reply = (b"".join(chunks)[: limits.output_bytes] for chunks in parts.values())
    return ended, out, err, reply, meter.usage(used or 0.0)


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
