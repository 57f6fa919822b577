"""Modules that run in a process forked from one that has imported the package already.

Importing the package and its libraries takes two seconds of a processor, most commands of the tests less than one. A
forked process has its own memory, folder, output and exit status, and can be killed. It shares the hash seed of strings
with the others that the same worker of the tests forks, so what could depend on the order of a set runs in new ones.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import resource
import runpy
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

PRELOADED = (
    "datasets",
    "pandas",
    "tracefactory.cli.run",
    "tracefactory.cli.show",
    "tracefactory.engine.executors.inline",
    "tracefactory.engine.reporting.display",
    "tracefactory.engine.run",
    "tracefactory.models.openai",
    "tracefactory.pruning",
    "tracefactory.publish.dataset",
    "tracefactory.serving.client",
    "tracefactory.serving.fake_server",
    "tracefactory.stages.filter.chain",
    "tracefactory.stages.mix.long_short",
    "tracefactory.stages.sample.chat",
    "tracefactory.stages.verify.auto",
    "tracefactory.verifiers.math",
)
"""What nearly every run imports. None of them may start a thread, or import Ray or torch."""

_PATH = list(sys.path)
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload([*PRELOADED, "tests.forked", "tests.preloaded"])


def start(
    module: str,
    arguments: tuple[str, ...],
    folder: Path,
    output: Path,
    errors: Path,
    environ: Mapping[str, str] | None = None,
    data_bytes: int | None = None,
) -> ForkServerProcess:
    """Start `python -m module arguments` in a process that is forked.

    Args:
        module: the module.
        arguments: its arguments.
        folder: the folder that it runs in.
        output: the file that gets its stdout.
        errors: the file that gets its stderr.
        environ: more environment variables, which no library reads while it is imported.
        data_bytes: the limit of its memory (RLIMIT_DATA).
    """
    given = (str(folder), str(output), str(errors), dict(environ or {}), data_bytes)
    process = _CONTEXT.Process(target=_run, args=(module, arguments, *given))
    process.start()
    return process


def finish(
    module: str, arguments: tuple[str, ...], folder: Path, timeout_s: float, **more: Any
) -> tuple[int, str, str]:
    """Run what `start` starts to its end; return exit status, stdout and stderr."""
    with tempfile.TemporaryDirectory() as kept:
        output, errors = Path(kept) / "stdout", Path(kept) / "stderr"
        process = start(module, arguments, folder, output, errors, **more)
        process.join(timeout_s)
        if process.exitcode is None:
            process.kill()
            raise TimeoutError(f"{module} {' '.join(arguments)} took more than {timeout_s} s:\n{errors.read_text()}")
        return process.exitcode, output.read_text(), errors.read_text()


def first_line(process: ForkServerProcess, output: Path, timeout_s: float = 60) -> str:
    """Wait for the first line of a process's output and return it."""
    end = time.monotonic() + timeout_s
    while not (output.exists() and "\n" in (written := output.read_text())):
        assert process.is_alive(), f"the process ended with {process.exitcode} before it wrote a line"
        assert time.monotonic() < end, "the process wrote no line in time"
        time.sleep(0.01)
    return written.split("\n", 1)[0]


def _run(
    module: str,
    arguments: tuple[str, ...],
    folder: str,
    output: str,
    errors: str,
    environ: dict[str, str],
    data_bytes: int | None,
) -> None:
    os.chdir(folder)
    os.environ.update(environ)
    if data_bytes is not None:
        resource.setrlimit(resource.RLIMIT_DATA, (data_bytes, data_bytes))
    for stream, path in ((1, output), (2, errors)):
        opened = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(opened, stream)
        os.close(opened)
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115 - for as long as the process
    sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", buffering=1, closefd=False)  # noqa: SIM115
    sys.path[:] = [folder, *_PATH[1:]]
    sys.argv = [module, *arguments]
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    finally:
        with suppress(BrokenPipeError):
            sys.stdout.flush()
        threading._shutdown()  # type: ignore[attr-defined]  # as at the end of Python: threads first, then exit functions
        atexit._run_exitfuncs()
