"""Try, from inside of the sandbox, what a hostile program would try; each protection is what these attempts measure."""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import struct
from collections.abc import Callable, Iterator
from typing import Any

from tracefactory.sandbox.inside.kernel import CAPABILITY_HEADER, call, error_of
from tracefactory.sandbox.inside.system_calls import refused_calls

_GET_NO_NEW_PRIVS = 39
_FORKS = 4  # times the limit


def probe(config: dict[str, Any]) -> dict[str, list[str]]:
    """Return for each protection what a program can do in spite of it.

    Args:
        config: `canaries` are what the program must not reach: a `file`, a named `socket`, a named pipe `fifo`, other
            `paths`, `devices`, a `port` of the loopback and an `abstract` socket; `pid` is a process of the host, and
            `processes` the limit.
    """
    __import__("colorsys")  # a module that is not loaded yet: an unreadable library is an error here
    canaries = config["canaries"]
    attempts: dict[str, Iterator[str]] = {
        "user": _user(),
        "files": _files(canaries),
        "network": _network(canaries),
        "processes": _processes(config["pid"]),
        "system_calls": _system_calls(),
        "process_count": _process_count(config["processes"]),
    }
    return {name: list(found) for name, found in attempts.items()}


def allocate(megabytes: int) -> None:
    """Let four processes hold memory until one of them is killed.

    Args:
        megabytes: the memory of one process; together they are to hold more than the limit.
    """
    for _ in range(4):
        if not os.fork():
            held = bytearray(megabytes << 20)
            while True:  # a sleeping process would not touch its memory again
                held[::4096] = b"x" * len(held[::4096])
    os.wait()


def _user() -> Iterator[str]:
    for name in ("setuid", "setgid", "seteuid"):
        if error_of(name, 0) == 0:
            yield f"become root ({name})"
    data = ctypes.create_string_buffer(24)
    call("capget", CAPABILITY_HEADER, data)
    if any(struct.unpack("6I", data.raw)):
        yield "use capabilities"
    if call("prctl", _GET_NO_NEW_PRIVS, 0, 0, 0, 0) != 1:
        yield "gain rights by running a program"


def _files(canaries: dict[str, Any]) -> Iterator[str]:
    if any(map(_opens, [canaries["file"], *canaries["paths"]])):
        yield "read files of the host"
    made = [f"{folder}/tracefactory-probe" for folder in ("/", "/dev", os.path.dirname(os.__file__))]
    made.append(f"{os.path.dirname(canaries['file'])}/tracefactory-probe")
    for path in made:
        if _works(os.mkdir, path):
            os.rmdir(path)
            yield "write outside of its folder"
    if _works(os.mknod, "device", 0o60600, os.makedev(7, 0)):
        yield "make a device"
    if _opens(canaries["fifo"], os.O_RDWR | os.O_NONBLOCK):
        yield "open a named pipe of the host"
    if _connects(socket.AF_UNIX, canaries["socket"]):
        yield "connect to a named socket of the host"
    if any(map(os.path.exists, canaries["devices"])):
        yield "see devices of the host"


def _network(canaries: dict[str, Any]) -> Iterator[str]:
    if _connects(socket.AF_INET, ("127.0.0.1", canaries["port"])):
        yield "connect to a port of the host"
    if _connects(socket.AF_UNIX, "\0" + canaries["abstract"]):
        yield "connect to an abstract socket of the host"
    if any(name != "lo" for _, name in socket.if_nameindex()):
        yield "see the network interfaces of the host"


def _processes(pid: int) -> Iterator[str]:
    if os.path.exists(f"/proc/{pid}/stat") and os.path.exists("/proc/self/stat"):
        yield "see processes of the host"
    try:
        os.kill(pid, 0)
        yield "signal processes of the host"
    except ProcessLookupError:
        return
    except PermissionError:
        yield "find processes of the host"


def _system_calls() -> Iterator[str]:
    """Make every refused call without useful arguments: without the filter it fails for another reason, or works."""
    for name, number in refused_calls().items():
        if error_of("syscall", number, 0, 0, 0, 0, 0, 0) != errno.EPERM:
            yield name
    if error_of("syscall", 435, None, ctypes.c_size_t(0)) != errno.ENOSYS:
        yield "clone3"


def _process_count(limit: int) -> Iterator[str]:
    reader, writer = os.pipe()
    children = []
    try:
        for _ in range(_FORKS * limit):
            child = os.fork()
            if not child:
                os.close(writer)
                os.read(reader, 1)
                os._exit(0)
            children.append(child)
    except OSError:
        children.append(0)
    os.close(writer)
    for child in children:
        if child:
            os.waitpid(child, 0)
    if 0 not in children:
        yield f"start {len(children)} processes"


def _works(function: Callable[..., object], *args: object) -> bool:
    try:
        function(*args)
    except OSError:
        return False
    return True


def _opens(path: str, flags: int = os.O_RDONLY) -> bool:
    return _works(lambda: os.close(os.open(path, flags)))


def _connects(family: int, address: Any) -> bool:
    with socket.socket(family, socket.SOCK_STREAM) as one:
        one.settimeout(1)
        return _works(one.connect, address)
