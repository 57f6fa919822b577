"""Run a command and say what it took: wall time, processor time and memory."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import psutil

from tracefactory.core.files import read_json


class Took(NamedTuple):
    """`seconds` of wall time, `cpu` seconds of the whole tree, `peak_mb` of the largest process."""

    seconds: float
    cpu: float
    peak_mb: float
    output: str

    def __str__(self) -> str:
        return f"{self.seconds:.2f} s, {self.cpu:.2f} s of CPU, {self.peak_mb:.0f} MB in the largest process"


def run_cli(*arguments: str | Path) -> Took:
    """Run `tracefactory` in a process of its own; raises when it fails."""
    return run([sys.executable, "-m", "tracefactory", *map(str, arguments)])


def run(command: list[str]) -> Took:
    """Run a command, looking at the memory of its processes ten times a second; raises when it fails."""
    started, peak = time.perf_counter(), 0
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, text=True)
        while True:
            ended, status, usage = os.wait4(process.pid, os.WNOHANG)
            if ended:
                break
            peak = max(peak, _largest(process.pid))
            time.sleep(0.1)
        seconds = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        text = output.read()
    assert process.returncode == 0, text
    return Took(seconds, usage.ru_utime + usage.ru_stime, peak / 2**20, text)


def _largest(pid: int) -> int:
    """Return the private memory of the largest process from `pid` down; what they share is not counted.

    The kernel's own record of the peak would count this process, which it was forked from.
    """
    found = 0
    with contextlib.suppress(psutil.NoSuchProcess):
        for process in (psutil.Process(pid), *psutil.Process(pid).children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                memory = process.memory_info()
                found = max(found, memory.rss - memory.shared)
    return found


def seconds_in_run(root: Path) -> float:
    """Return what the newest run took from its first stage to its last, without the start of the process."""
    newest = max((root / ".tracefactory/runs").iterdir())
    outcome = read_json(newest / "outcome.json")
    return float(outcome["finished"] - outcome["started"])
