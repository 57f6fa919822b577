"""The process inside the sandbox: confine it, then run one program. A separate script with only the standard library.

`tracefactory.sandbox.run` starts it as `python -I child.py CONFIG_FD RESULT_FD TESTS_FD`. The first process creates the
namespaces; the second is the first process of the new process namespace, so that all processes in it die with it; the
third runs the program. The tests run in a fourth process: only it has the tests and the pipe that reports that they
passed, and the program cannot access its memory. Protections that the kernel refuses are skipped and reported.
"""

import ctypes
import json
import os
import resource
import signal
import socket
import struct
import sys
import traceback
import types
from typing import Any

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from calls import Caller, ClosedError, Server  # type: ignore[import-not-found]  # in the same folder

del sys.path[0]

NEWNS, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET = 0x20000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_NO_NEW_PRIVS = 1, 4, 38
MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REC, MS_PRIVATE = 2, 4, 8, 16384, 1 << 18
SYS_MOUNT_SETATTR, AT_FDCWD, AT_RECURSIVE, ATTR_RDONLY = 442, -100, 0x8000, 1
CAPABILITY_VERSION_3 = 0x20080522
NOBODY = 65534
TESTS_OUT_OF_TIME = 123
"""Exit code when the tests exceeded their CPU time, and the program used hardly any."""
OUT_OF_TIME = 124
"""Exit code when the program exceeded its CPU time."""
PROGRAM_EXITED = 125
"""Exit code of the tests when the program exited before they finished."""
libc = ctypes.CDLL(None, use_errno=True)


def call(name: str, *args: object) -> None:
    """Call a libc function and raise OSError when it fails."""
    if getattr(libc, name)(*args) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{name}: {os.strerror(code)}")


def become_nobody() -> None:
    """Switch from root to the user nobody: the limit on the number of processes does not apply to root."""
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)
    call("prctl", PR_SET_DUMPABLE, 1, 0, 0, 0)


def enter_namespaces() -> None:
    """Enter new namespaces for users, processes, mounts, network and interprocess communication."""
    user, group = os.geteuid(), os.getegid()
    call("unshare", NEWUSER | NEWNS | NEWPID | NEWNET | NEWIPC | NEWUTS)
    for name, text in (("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1")):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)


def read_only_files(folder: str) -> None:
    """Make all mounted file systems read-only, hide processes outside, and mount an empty writable folder."""
    call("mount", None, b"/", None, MS_REC | MS_PRIVATE, None)
    attributes = struct.pack("QQQQ", ATTR_RDONLY, 0, 0, 0)
    call("syscall", SYS_MOUNT_SETATTR, AT_FDCWD, b"/", AT_RECURSIVE, attributes, len(attributes))
    flags = MS_NOSUID | MS_NODEV
    call("mount", b"tmpfs", folder.encode(), b"tmpfs", flags, b"size=64m,nr_inodes=4096,mode=0700")
    try:
        call("mount", b"proc", b"/proc", b"proc", flags | MS_NOEXEC, None)
    except OSError:  # containers that mask parts of /proc do not allow a new one; an empty folder hides it too
        call("mount", b"tmpfs", b"/proc", b"tmpfs", flags | MS_NOEXEC, b"size=0,nr_inodes=1")


def drop_capabilities() -> None:
    """Drop the capabilities of the user namespace permanently."""
    call("prctl", PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    header, nothing = struct.pack("Ii", CAPABILITY_VERSION_3, 0), bytes(24)
    call("capset", header, nothing)


def set_limits(config: dict[str, Any]) -> None:
    """Set the resource limits of the program as hard limits, so that it cannot raise them.

    At the soft limit on CPU time the kernel sends SIGXCPU; at the hard limit it kills the process.
    """
    seconds, memory = max(1, round(config["seconds"])), config["memory_mb"] << 20
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
    for kind, value in (
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_FSIZE, config["file_mb"] << 20),
        (resource.RLIMIT_NPROC, config["processes"]),
        (resource.RLIMIT_NOFILE, 64),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(kind, (value, value))


def kill_descendants() -> None:
    """Kill processes that the program left behind, without a process namespace; this process is their subreaper."""
    for _ in range(200):
        with open(f"/proc/self/task/{os.getpid()}/children") as file:
            children = [int(pid) for pid in file.read().split()]
        if not children:
            return
        for pid in children:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def confine(config: dict[str, Any]) -> tuple[list[str], dict[str, str]]:
    """Activate the protections and continue in a process inside them.

    Returns:
        The active protections, and for each missing one the reason.
    """
    active: list[str] = []
    missing: dict[str, str] = {}
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
            kill_descendants()
        os._exit(os.waitstatus_to_exitcode(status) & 255)
    call("prctl", PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if not missing:
        try:
            read_only_files(config["folder"])
            active.append("files")
        except OSError as error:
            missing["files"] = str(error)
        if os.geteuid() == 0:
            try:  # limit the processes of the namespace (Linux 6.14), because resource limits do not apply to root
                with open("/proc/sys/kernel/pid_max", "w") as file:
                    file.write("301")
            except OSError as error:
                missing["number of processes"] = str(error)
        drop_capabilities()
    return active, missing


def main() -> None:
    """Confine this process, run the program, and exit with its status."""
    config_fd, result_fd, tests_fd = (int(arg) for arg in sys.argv[1:4])
    with os.fdopen(config_fd, "rb") as file:
        config = json.loads(file.read())
    active, missing = confine(config)
    os.chdir(config["folder"])
    set_limits(config)
    if config["probe"]:
        import colorsys  # noqa: F401  # any module not yet imported, to check that this user can read the library

        os.write(result_fd, json.dumps({"active": active, "missing": missing}).encode())
        os._exit(0)
    call("prctl", PR_SET_DUMPABLE, 0, 0, 0, 0)  # no process may trace or read the processes of the harness
    if config["stdio"]:
        os.close(tests_fd)
        program_pid = os.fork()
        if not program_pid:
            os.close(result_fd)
            run_program(config, None)
        os.close(result_fd)
        wait_and_exit(program_pid, config["seconds"])
    tests_end, program_end = socket.socketpair()
    tests_pid = os.fork()
    if not tests_pid:
        program_end.close()
        run_tests(tests_end, tests_fd, result_fd)
    for descriptor in (result_fd, tests_fd):
        os.close(descriptor)
    tests_end.close()
    program_pid = os.fork()
    if not program_pid:
        run_program(config, program_end)
    program_end.close()
    wait_and_exit(program_pid, config["seconds"], tests_pid)


def wait_and_exit(program_pid: int, seconds: float, tests_pid: int = 0) -> None:
    """Wait for the tests, or for the program if there are no tests, and exit with their status.

    Tests that exceed their CPU time while the program used hardly any loop by themselves; otherwise the program kept
    them busy, with a generator without an end, say.
    """
    code = 0
    if tests_pid:
        code, out_of_time, _ = wait_for(tests_pid, seconds)
        if out_of_time:
            os.kill(program_pid, signal.SIGKILL)
            used = wait_for(program_pid, seconds)[2]
            os._exit(OUT_OF_TIME if used >= seconds / 10 else TESTS_OUT_OF_TIME)
        if code != PROGRAM_EXITED:
            leave(code)  # all processes of the namespace die with this one
    own, out_of_time, _ = wait_for(program_pid, seconds)
    if out_of_time:
        os._exit(OUT_OF_TIME)
    leave(own or code)


def leave(code: int) -> None:
    """Exit with the code of a program, unless that says here that it was out of time."""
    os._exit(1 if code in (OUT_OF_TIME, TESTS_OUT_OF_TIME) else code & 255)


def wait_for(pid: int, seconds: float) -> tuple[int, bool, float]:
    """Wait for a process; return its exit code, whether the limit on CPU time ended it, and the CPU time it used."""
    _, status, usage = os.wait4(pid, 0)
    code, used = os.waitstatus_to_exitcode(status), usage.ru_utime + usage.ru_stime
    return code, code == -signal.SIGXCPU or (code == -signal.SIGKILL and used >= seconds / 2), used


def run_program(config: dict[str, Any], end: socket.socket | None) -> None:
    """Run the program as a script that reads its standard input, or, with `end`, serve the calls of the tests."""
    if end is None:
        stdin = os.memfd_create("stdin")
        os.write(stdin, config["stdin"].encode())
        os.lseek(stdin, 0, os.SEEK_SET)
        os.dup2(stdin, 0)
    name = "__main__" if end is None else "solution"
    module = types.ModuleType(name)
    sys.modules[name] = module
    sys.argv = ["solution.py"]
    exec(compile(config["code"], "solution.py", "exec"), module.__dict__)
    if end is not None:
        Server(end).serve(dict(module.__dict__))
    sys.stdout.flush()
    os._exit(0)


def run_tests(end: socket.socket, tests_fd: int, result_fd: int) -> None:
    """Run the tests on proxies for the program's names; send the token back only after the last test passed."""
    with os.fdopen(tests_fd, "rb") as file:
        given = json.loads(file.read())
    try:
        names = {**Caller(end).names(), "__name__": "tests"}
        for test in given["tests"]:
            exec(compile(test, "tests.py", "exec"), names)
    except ClosedError:
        os._exit(PROGRAM_EXITED)  # the program's stderr has the reason
    except BaseException:  # noqa: BLE001  # reported: the tests did not pass
        traceback.print_exc(limit=-2)
        sys.stderr.flush()
        os._exit(1)
    os.write(result_fd, given["token"].encode())
    os._exit(0)


if __name__ == "__main__":
    main()
