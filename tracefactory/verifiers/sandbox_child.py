"""The inside of the sandbox: confine this process, then run one program. A script of its own, standard library only.

Run by `tracefactory.verifiers.sandbox` as `python -I sandbox_child.py CONFIG_FD RESULT_FD TOKEN_FD`. The first
process makes the namespaces; the second is the first process of the new process namespace, so that everything in it
dies with it; the third runs the program. What the kernel refuses is left out and reported, never passed over in
silence.
"""

import ctypes
import json
import os
import resource
import signal
import struct
import sys
import types
from typing import Any

NEWNS, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET = 0x20000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_NO_NEW_PRIVS = 1, 4, 38
MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REC, MS_PRIVATE = 2, 4, 8, 16384, 1 << 18
SYS_MOUNT_SETATTR, AT_FDCWD, AT_RECURSIVE, ATTR_RDONLY = 442, -100, 0x8000, 1
CAPABILITY_VERSION_3 = 0x20080522
NOBODY = 65534
libc = ctypes.CDLL(None, use_errno=True)


def call(name: str, *args: object) -> None:
    """Call a libc function and raise OSError when it fails."""
    if getattr(libc, name)(*args) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{name}: {os.strerror(code)}")


def become_nobody() -> None:
    """Leave the root account: its processes are exempt from the limit on their number."""
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)
    call("prctl", PR_SET_DUMPABLE, 1, 0, 0, 0)


def enter_namespaces() -> None:
    """Enter namespaces of its own for users, processes, mounts, network and interprocess communication."""
    user, group = os.geteuid(), os.getegid()
    call("unshare", NEWUSER | NEWNS | NEWPID | NEWNET | NEWIPC | NEWUTS)
    for name, text in (("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1")):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)


def read_only_files(folder: str) -> None:
    """Make every mounted file system read-only, hide the processes outside, and mount an empty writable folder."""
    call("mount", None, b"/", None, MS_REC | MS_PRIVATE, None)
    attributes = struct.pack("QQQQ", ATTR_RDONLY, 0, 0, 0)
    call("syscall", SYS_MOUNT_SETATTR, AT_FDCWD, b"/", AT_RECURSIVE, attributes, len(attributes))
    flags = MS_NOSUID | MS_NODEV
    call("mount", b"tmpfs", folder.encode(), b"tmpfs", flags, b"size=64m,nr_inodes=4096,mode=0700")
    try:
        call("mount", b"proc", b"/proc", b"proc", flags | MS_NOEXEC, None)
    except OSError:  # a container that masks parts of /proc allows no new one: an empty folder hides as much
        call("mount", b"tmpfs", b"/proc", b"tmpfs", flags | MS_NOEXEC, b"size=0,nr_inodes=1")


def few_processes() -> None:
    """Bound the number of processes by their namespace (Linux 6.14): no limit of its own binds the root account."""
    with open("/proc/sys/kernel/pid_max", "w") as file:
        file.write("301")


def drop_capabilities() -> None:
    """Give up what the user namespace granted, for good."""
    call("prctl", PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    header, nothing = struct.pack("Ii", CAPABILITY_VERSION_3, 0), bytes(24)
    call("capset", header, nothing)


def limit(config: dict[str, Any]) -> None:
    """Set the resource limits of the program: hard ones, so that it cannot raise them."""
    seconds, memory = max(1, int(config["seconds"]) + 1), config["memory_mb"] << 20
    for kind, value in (
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_FSIZE, config["file_mb"] << 20),
        (resource.RLIMIT_NPROC, config["processes"]),
        (resource.RLIMIT_NOFILE, 64),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(kind, (value, value))


def end_descendants() -> None:
    """Kill what the program left behind where there is no process namespace; they were all handed to this process."""
    for _ in range(200):
        with open(f"/proc/self/task/{os.getpid()}/children") as file:
            children = [int(pid) for pid in file.read().split()]
        if not children:
            return
        for pid in children:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def main() -> None:
    """Confine, run, and report how the program ended."""
    config_fd, result_fd, token_fd = (int(arg) for arg in sys.argv[1:4])
    with os.fdopen(config_fd, "rb") as file:
        config = json.loads(file.read())
    active, missing = [], {}
    call("prctl", PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if config["nobody"]:
        become_nobody()
        call("prctl", PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    try:
        enter_namespaces()
        active += ["user", "processes", "network"]
    except OSError as error:
        missing["namespaces"] = str(error)
        call("prctl", 36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER
    first = os.fork()
    if first:
        _, status = os.waitpid(first, 0)
        if missing:
            end_descendants()
        os._exit(os.waitstatus_to_exitcode(status) & 255)
    call("prctl", PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if not missing:
        try:
            read_only_files(config["folder"])
            active.append("files")
        except OSError as error:
            missing["files"] = str(error)
        if os.geteuid() == 0:
            try:
                few_processes()
            except OSError as error:
                missing["number of processes"] = str(error)
        drop_capabilities()
    os.chdir(config["folder"])
    limit(config)
    if config["probe"]:
        import colorsys  # noqa: F401  # any module that is still on disk: can this user read the library?

        os.write(result_fd, json.dumps({"active": active, "missing": missing}).encode())
        os._exit(0)
    program = os.fork()
    if not program:
        os.close(result_fd) if config["stdio"] else None
        run(config, result_fd, token_fd)
    os.close(result_fd)
    _, status = os.waitpid(program, 0)
    os._exit(os.waitstatus_to_exitcode(status) & 255)


def run(config: dict[str, Any], result_fd: int, token_fd: int) -> None:
    """Run the program; when tests are given, send the token back after the last of them, and only then."""
    stdin = os.memfd_create("stdin")
    os.write(stdin, config["stdin"].encode())
    os.lseek(stdin, 0, os.SEEK_SET)
    os.dup2(stdin, 0)
    read, write, leave, flush = os.read, os.write, os._exit, sys.stdout.flush
    module = types.ModuleType("__main__" if config["stdio"] else "solution")
    sys.modules[module.__name__] = module
    sys.argv = ["solution.py"]
    trusted = dict(vars(__builtins__))
    if config["stdio"]:
        os.close(token_fd)
        exec(compile(config["code"], "solution.py", "exec"), module.__dict__)
        sys.stdout.flush()
        return_code = 0
        leave(return_code)
    exec(compile(config["code"], "solution.py", "exec"), module.__dict__)
    names = {**module.__dict__, "__name__": "tests", "__builtins__": trusted}
    for name, value in module.__dict__.items():
        if isinstance(value, types.FunctionType):
            names[name] = honest(value, module.__name__)
    for test in config["tests"]:
        exec(compile(test, "tests.py", "exec"), names)
    flush()
    write(result_fd, read(token_fd, 64))
    leave(0)


def honest(function: types.FunctionType, module: str) -> object:
    """Wrap a function of the solution: a result that decides by itself what it equals is no result."""

    def wrapped(*args: object, **named: object) -> object:
        result = function(*args, **named)
        own = any(
            kind.__module__ == module and not {"__eq__", "__ne__"}.isdisjoint(vars(kind))
            for kind in type(result).__mro__
        )
        if own and not any(type(arg).__module__ == module for arg in args):
            raise AssertionError(f"{function.__name__} returned a {type(result).__name__} with its own equality")
        return result

    wrapped.__dict__.update(function.__dict__)
    wrapped.__name__ = function.__name__
    return wrapped


if __name__ == "__main__":
    main()
