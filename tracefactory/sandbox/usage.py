"""What a program in the sandbox used: processor time, and the time in which it could not run although it wanted to.

When a time limit is reached, the program or the machine can be the cause. A program that loops used the processor; one
that sleeps, or waits for input that never comes, did not want it. One on a busy machine wanted it and did not get it:
its processes were ready to run, or waited for the disk. The kernel counts both for every process.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

import psutil

BUSY_SHARE = 0.25
"""The machine is the cause when a program wanted to run in this share of the time in which it did not run."""
_EVERY = 0.2  # seconds between two samples
_TICK = 1 / os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")
_WAITS_FOR_DISK = "D"
_RUNNABLE = "R"


@dataclass(frozen=True)
class Usage:
    """What the processes of a program used, in seconds.

    `cpu` is processor time and `wall` the time from start to end. `waited` is the time in which processes were ready to
    run but did not run, `disk` that in which they waited for the disk, and `stalled` that in which this process, which
    watches the program, did not run itself.
    """

    cpu: float
    wall: float
    waited: float = 0.0
    disk: float = 0.0
    stalled: float = 0.0

    @property
    def kept_from_running(self) -> float:
        """The seconds in which the program wanted to run and the machine did not let it."""
        return min(max(self.waited + self.disk, self.stalled), max(0.0, self.wall - self.cpu))


def stopped_by(usage: Usage, seconds: float) -> Literal["program", "machine"]:
    """Return why a program used up the wall time: because of what it does, or because of the machine.

    That depends on what it did in the time in which it did not run: it slept or waited for itself, or it was kept from
    running. A program that had its processor time, in several processes, is the cause on every machine.

    Args:
        usage: what the program used.
        seconds: its limit on processor time.
    """
    idle = usage.wall - usage.cpu
    if usage.cpu >= seconds or idle <= 0:
        return "program"
    return "machine" if usage.kept_from_running >= BUSY_SHARE * idle else "program"


@dataclass
class Meter:
    """Samples what the processes below one process use; a process that ended between two samples counts as it was."""

    pid: int
    begin: float
    memory: int = 0
    """Bytes that the processes held at the last sample, without files and shared memory."""
    _cpu: dict[tuple[int, float], float] = field(default_factory=dict)
    _waited: dict[tuple[int, int], float] = field(default_factory=dict)
    _estimated: float = 0.0
    _disk: float = 0.0
    _stalled: float = 0.0
    _last: float = 0.0
    _woken: float = 0.0

    def __post_init__(self) -> None:
        self._last = self._woken = self.begin

    def woken(self, planned: float) -> None:
        """Note that the watching process runs again, after it planned to sleep at most `planned` seconds."""
        now = time.monotonic()
        late = now - self._woken - planned
        self._stalled += late if late > _EVERY else 0.0
        self._woken = now

    def sample(self, *, last: bool = False) -> None:
        """Read the counters of all processes, where the last time is long enough ago or this is the last one."""
        now = time.monotonic()
        passed = now - self._last
        if passed < _EVERY and not last:
            return
        self._last = now
        states, self.memory = set(), 0
        for process in _tree(self.pid):
            stat = _stat(process)
            if stat is None:
                continue
            state, cpu, started = stat
            self.memory += _private_memory(process)
            states.add(state)
            self._cpu[process, started] = cpu
            for thread, waited in _run_delays(process):
                self._waited[process, thread] = waited
        self._disk += passed if _WAITS_FOR_DISK in states and _RUNNABLE not in states else 0.0
        self._estimated += passed if _RUNNABLE in states else 0.0

    def usage(self, used: float) -> Usage:
        """Return what was used.

        Args:
            used: the processor time of the processes that have been waited for, as the kernel reports it at the end.
        """
        cpu, wall = max(used, sum(self._cpu.values())), time.monotonic() - self.begin
        # Without the kernel's count, a process that is seen to be ready to run is taken to be so since the last sample.
        waited = sum(self._waited.values()) if self._waited else max(0.0, self._estimated - cpu)
        return Usage(cpu=cpu, wall=wall, waited=waited, disk=self._disk, stalled=self._stalled)


def _tree(pid: int) -> list[int]:
    try:
        return [pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))]
    except psutil.NoSuchProcess:
        return []


def _stat(pid: int) -> tuple[str, float, float] | None:
    """Return the state of a process, its processor time, and when it started."""
    text = _read(f"/proc/{pid}/stat")
    if text is None:
        return None
    fields = text.rpartition(")")[2].split()  # the name before it may hold anything
    return fields[0], sum(map(int, fields[11:13])) * _TICK, int(fields[19]) * _TICK


def _private_memory(pid: int) -> int:
    """Return the resident bytes of a process that are neither of files nor shared."""
    pages = (_read(f"/proc/{pid}/statm") or "0 0 0").split()
    return (int(pages[1]) - int(pages[2])) * _PAGE


def _run_delays(pid: int) -> Iterator[tuple[int, float]]:
    """Yield for each thread of a process the time in which it was ready to run and did not run."""
    try:
        threads = os.listdir(f"/proc/{pid}/task")
    except OSError:
        return
    for thread in threads:
        text = _read(f"/proc/{pid}/task/{thread}/schedstat")
        counts = (text or "").split()
        if len(counts) == 3:
            yield int(thread), int(counts[1]) / 1e9


def _read(path: str) -> str | None:
    """Return the text of a file, None for a process that has ended or a kernel that does not tell."""
    try:
        with open(path) as file:
            return file.read()
    except OSError:
        return None
