"""Run untrusted Python programs in a sandbox with kernel protections and resource limits; all processes are killed.

The program gets an empty environment, an empty temporary directory, no network, read-only files and no view of other
processes, where the kernel allows namespaces; `protections()` returns which protections are active on this machine.
Limits on time, memory, file size, processes and output apply everywhere on Linux.
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

_CHILD = Path(__file__).with_name("child.py")
_OUT_OF_TIME = 124
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
    """The result of a program: `ended` is "exit", "timeout" or "output"; `passed` means that all tests passed."""

    ended: str
    code: int | None
    stdout: str
    stderr: str
    passed: bool
    seconds: float


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
            ended, stdout, stderr, reply = _collect(process, result_in, limits, begin)
            writer.join()
    finally:
        os.close(result_in)
        shutil.rmtree(folder, ignore_errors=True)
    texts = [part.decode("utf-8", "replace") for part in (stdout, stderr)]
    passed = ended == "exit" and process.returncode == 0 and secrets.compare_digest(reply, token.encode())
    return RunResult(ended, process.returncode, texts[0], texts[1], passed, time.monotonic() - begin), reply


def _write_json(file: IO[bytes], config: dict[str, object]) -> None:
    try:
        file.write(json.dumps(config).encode())
        file.close()
    except BrokenPipeError:
        _log.warning("the sandbox exited before it read its program")


def _collect(
    process: subprocess.Popen[bytes], result: int, limits: Limits, begin: float
) -> tuple[str, bytes, bytes, bytes]:
    """Read the output of the program until it exits, times out or writes too much; then kill its process tree."""
    outputs = [pipe.fileno() for pipe in (process.stdout, process.stderr) if pipe is not None]
    parts: dict[int, list[bytes]] = {descriptor: [] for descriptor in (*outputs, result)}
    sizes = 0
    ended = "exit"
    with selectors.DefaultSelector() as selector:
        for descriptor in parts:
            selector.register(descriptor, selectors.EVENT_READ)
        while selector.get_map():
            left = begin + limits.wall_seconds - time.monotonic()
            ready = selector.select(min(max(left, 0), 0.2))
            if left <= 0:
                ended = "timeout"
                break
            if not ready and process.poll() is not None:
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
    if ended == "exit":
        try:
            process.wait(max(0.1, begin + limits.wall_seconds - time.monotonic()))
        except subprocess.TimeoutExpired:
            ended = "timeout"
    _kill_tree(process)
    if ended == "exit" and process.returncode == _OUT_OF_TIME:
        ended = "timeout"
    out, err, reply = (b"".join(chunks)[: limits.output_bytes] for chunks in parts.values())
    return ended, out, err, reply


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
    process.wait()
