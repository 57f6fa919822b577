"""The inside of the sandbox: confine this process, then run one program. A script of its own, standard library only.

Run by `tracefactory.sandbox.run` as `python -I sandbox_child.py CONFIG_FD RESULT_FD TESTS_FD`. The first
process makes the namespaces; the second is the first process of the new process namespace, so that everything in it
dies with it; the third runs the program. Tests run in a fourth, which alone ever holds them and the end of the pipe
that says they passed, and whose memory the program may not touch. What the kernel refuses is left out and reported,
never passed over in silence.
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
from calls import Caller, GoneError, Server  # type: ignore[import-not-found]  # beside this file

del sys.path[0]

NEWNS, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET = 0x20000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_NO_NEW_PRIVS = 1, 4, 38
MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REC, MS_PRIVATE = 2, 4, 8, 16384, 1 << 18
SYS_MOUNT_SETATTR, AT_FDCWD, AT_RECURSIVE, ATTR_RDONLY = 442, -100, 0x8000, 1
CAPABILITY_VERSION_3 = 0x20080522
NOBODY = 65534
OUT_OF_TIME = 124
"""Exit code that says the program used up its processor time."""
PROGRAM_GONE = 125
"""Exit code of the tests when the program ended before they did."""
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
    """Set the resource limits of the program: hard ones, so that it cannot raise them.

    At the soft limit on processor time the kernel sends SIGXCPU, and at the hard one it kills.
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


def confine(config: dict[str, Any]) -> tuple[list[str], dict[str, str]]:
    """Put up the protections and go on in a process inside them; return which are active, and why others are not."""
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
    return active, missing


def main() -> None:
    """Confine, run, and report how the program ended."""
    config_fd, result_fd, tests_fd = (int(arg) for arg in sys.argv[1:4])
    with os.fdopen(config_fd, "rb") as file:
        config = json.loads(file.read())
    active, missing = confine(config)
    os.chdir(config["folder"])
    limit(config)
    if config["probe"]:
        import colorsys  # noqa: F401  # any module that is still on disk: can this user read the library?

        os.write(result_fd, json.dumps({"active": active, "missing": missing}).encode())
        os._exit(0)
    call("prctl", PR_SET_DUMPABLE, 0, 0, 0, 0)  # nobody may trace or read the processes of the harness
    if config["stdio"]:
        os.close(tests_fd)
        program = os.fork()
        if not program:
            os.close(result_fd)
            run_script(config)
        os.close(result_fd)
        leave(program, config["seconds"])
    ours, theirs = socket.socketpair()
    judge = os.fork()
    if not judge:
        theirs.close()
        run_tests(ours, tests_fd, result_fd)
    for descriptor in (result_fd, tests_fd):
        os.close(descriptor)
    ours.close()
    program = os.fork()
    if not program:
        serve(config, theirs)
    theirs.close()
    leave(program, config["seconds"], judge)


def leave(program: int, seconds: float, judge: int = 0) -> None:
    """Wait for the tests, or for the program where there are none, and end with how they ended."""
    code = 0
    if judge:
        code = os.waitstatus_to_exitcode(os.waitpid(judge, 0)[1])
        if code != PROGRAM_GONE:
            os._exit(code & 255)  # with this process everything in its namespace dies
    _, status, used = os.wait4(program, 0)
    own = os.waitstatus_to_exitcode(status)
    killed = own == -signal.SIGKILL and used.ru_utime + used.ru_stime >= seconds / 2
    os._exit(OUT_OF_TIME if killed or own == -signal.SIGXCPU else (own or code) & 255)


def run_script(config: dict[str, Any]) -> None:
    """Run the program as a script that reads its standard input."""
    stdin = os.memfd_create("stdin")
    os.write(stdin, config["stdin"].encode())
    os.lseek(stdin, 0, os.SEEK_SET)
    os.dup2(stdin, 0)
    module = types.ModuleType("__main__")
    sys.modules["__main__"] = module
    sys.argv = ["solution.py"]
    exec(compile(config["code"], "solution.py", "exec"), module.__dict__)
    sys.stdout.flush()
    os._exit(0)


def serve(config: dict[str, Any], end: socket.socket) -> None:
    """Run the program, then answer the calls of the tests."""
    module = types.ModuleType("solution")
    sys.modules["solution"] = module
    sys.argv = ["solution.py"]
    exec(compile(config["code"], "solution.py", "exec"), module.__dict__)
    Server(end).serve(dict(module.__dict__))
    sys.stdout.flush()
    os._exit(0)


def run_tests(end: socket.socket, tests_fd: int, result_fd: int) -> None:
    """Run the tests on stand-ins for what the program defines; send the token back after the last, and only then."""
    with os.fdopen(tests_fd, "rb") as file:
        given = json.loads(file.read())
    try:
        names = {**Caller(end).names(), "__name__": "tests"}
        for test in given["tests"]:
            exec(compile(test, "tests.py", "exec"), names)
    except GoneError:
        os._exit(PROGRAM_GONE)  # what the program wrote to its standard error says why
    except BaseException:  # noqa: BLE001  # reported: the tests did not pass
        traceback.print_exc(limit=-2)
        sys.stderr.flush()
        os._exit(1)
    os.write(result_fd, given["token"].encode())
    os._exit(0)


if __name__ == "__main__":
    main()
