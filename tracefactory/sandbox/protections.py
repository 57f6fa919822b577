"""Which protections the sandbox has on this machine, measured by trying what a hostile program would try.

A protection that does not hold is a refusal to run programs, unless the pipeline allows it by name.
"""

from __future__ import annotations

import contextlib
import os
import socket
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from tracefactory.core.errors import Mistake, UserError
from tracefactory.sandbox import bubblewrap
from tracefactory.sandbox.inside.confine import DEVICES
from tracefactory.sandbox.launch import Limits, SandboxError, Way, launch
from tracefactory.sandbox.root import is_below, minimal_root

_NAMESPACES = (
    "programs need the namespaces of the kernel (Linux 5.12 or later): in a container, start it with the capability "
    "SYS_ADMIN or run as an ordinary user with unprivileged user namespaces; on Ubuntu 24.04, install bubblewrap"
)
PROTECTIONS: Mapping[str, tuple[str, str]] = {
    "user": ("a user without rights, who cannot become root", _NAMESPACES),
    "files": ("sees the interpreter and its libraries, read-only, and one folder of its own", _NAMESPACES),
    "processes": ("sees and signals no process outside", _NAMESPACES),
    "network": ("connects to nothing", _NAMESPACES),
    "system_calls": (
        "calls of the kernel for leaving a sandbox are refused",
        "run on Linux with seccomp, on x86_64 or aarch64",
    ),
    "memory": (
        "all processes together stay within the limit, files in memory included",
        "give this user a control group with the controllers memory and pids (systemd: `systemd-run --user --scope`)",
    ),
    "process_count": ("the number of processes is limited", _NAMESPACES),
}
"""The protections: what holds for a program, and the remedy where it does not."""
_TRIAL = Limits(seconds=10, wall=30, memory_mb=128, processes=16)
_allowed: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Protections:
    """What was measured: the way to confine, and for each protection that does not hold what a program can do."""

    outside: str
    possible: Mapping[str, str]
    landlock: bool

    def missing(self, allow: Iterable[str] = ()) -> list[str]:
        """Return the protections that do not hold and are not allowed to be missing."""
        return [name for name in PROTECTIONS if name in self.possible and name not in set(allow)]

    def __str__(self) -> str:
        holds = ", ".join(name for name in PROTECTIONS if name not in self.possible)
        missing = "; ".join(f"{name} (a program can {what})" for name, what in self.possible.items())
        return f"sandbox: holds {holds or 'nothing'}" + (f"; missing: {missing}" if missing else "")


def allow_missing(names: Iterable[str]) -> None:
    """Let programs run in this process without some protections: those that a pipeline allows by name."""
    global _allowed
    _allowed = frozenset(names)


def way() -> Way:
    """Return how to confine a program in this process.

    Raises:
        UserError: when a protection is missing that may not be missing.
    """
    require(_allowed)
    return Way(protections().outside, _allowed)


def require(allow: Iterable[str]) -> Protections:
    """Refuse to run programs where a protection does not hold.

    Args:
        allow: the protections that may be missing.

    Raises:
        UserError: naming each missing protection, what a program could do, and the remedy.
    """
    found = protections()
    if missing := found.missing(allow):
        possible = "; ".join(f"{name}: a program can {found.possible[name]}" for name in missing)
        remedies = "; or ".join(dict.fromkeys(PROTECTIONS[name][1] for name in missing))
        accept = f"`sandbox: {{allow: [{', '.join(missing)}]}}` in the pipeline accepts it"
        message = f"programs of models are not run here, because the sandbox does not hold: {possible}"
        raise UserError(Mistake(message, hint=f"{remedies}; or {accept}. `tracefactory doctor` shows the table"))
    return found


@lru_cache(maxsize=1)
def protections() -> Protections:
    """Measure the protections of this machine once: of bubblewrap where it is installed, and of our own way.

    The first way in which nothing is missing is taken, otherwise the one in which least is.

    Raises:
        UserError: when the sandbox does not start in any way.
    """
    measured: list[Protections] = []
    errors: list[str] = []
    for outside in ["bubblewrap", "own"] if bubblewrap.find() else ["own"]:
        try:
            measured.append(_measure(outside))
        except (SandboxError, OSError) as error:
            errors.append(str(error))
            continue
        if not measured[-1].possible:
            break
    if not measured:
        message = "the sandbox in which programs of models are run does not start: " + "; ".join(errors)
        raise UserError(Mistake(message, hint="the interpreter and its packages must be readable for other users"))
    return min(measured, key=lambda one: len(one.possible))


def _measure(outside: str) -> Protections:
    everything = Way(outside, frozenset(PROTECTIONS))
    with _canaries() as canaries:
        ended = launch(everything, {"probe": "all", "canaries": canaries}, _TRIAL)
    if "possible" not in ended.reply:
        raise SandboxError(f"its probes ended with code {ended.code}: {ended.stderr.strip().rpartition(chr(10))[2]}")
    possible = {name: ", ".join(found) for name, found in ended.reply["possible"].items() if found}
    memory = launch(everything, {"probe": "memory"}, _TRIAL.model_copy(update={"wall": 10.0})).how
    if memory != "memory":
        possible["memory"] = "hold more than the limit in four processes"
    for name, reason in ended.reply["missing"].items():
        if name in PROTECTIONS:
            possible[name] = f"{possible.get(name) or 'do what it prevents'} ({reason})"
    return Protections(outside, possible, "landlock" not in ended.reply["missing"])


@contextlib.contextmanager
def _canaries() -> Iterator[dict[str, Any]]:
    """Yield what a program must not reach: files, sockets and a process of the host."""
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as open_ones:
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "file").write_text("secret")
        os.mkfifo(folder / "fifo", 0o666)
        (folder / "fifo").chmod(0o666)
        port = open_ones.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1]
        for address in (str(folder / "socket"), "\0" + name):
            listener = open_ones.enter_context(socket.socket(socket.AF_UNIX))
            listener.bind(address)
            listener.listen()
        (folder / "socket").chmod(0o777)
        files = {"file": str(folder / "file"), "fifo": str(folder / "fifo"), "socket": str(folder / "socket")}
        yield {**files, "abstract": name, "port": port, "paths": _private_paths(), "devices": _devices()}


def _private_paths() -> list[str]:
    """Return paths of the host that are no part of the minimal root."""
    paths = minimal_root().paths
    home = Path.home()
    inside = [str(path) for path in home.iterdir()] if os.access(home, os.R_OK) else []
    hidden = [path for path in inside if not any(is_below(one, path) or is_below(path, one) for one in paths)]
    return ["/etc/passwd", "/proc/1/environ", "/proc/self/environ", "/sys/kernel", *sorted(hidden)[:20]]


def _devices() -> list[str]:
    found = [entry.path for entry in os.scandir("/dev") if not entry.is_dir()] if os.path.isdir("/dev") else []
    return sorted(set(found) - set(DEVICES))
