"""Confine this process: namespaces, a minimal root file system, a user without rights, limits, and kernel filters.

Each step that the kernel refuses is returned with its reason, under the name of the protection that it is for.
"""

from __future__ import annotations

import errno
import os
import resource
import signal
import struct
from typing import Any

from tracefactory.sandbox.inside import landlock
from tracefactory.sandbox.inside.kernel import CAPABILITY_HEADER, call
from tracefactory.sandbox.inside.system_calls import refuse_system_calls

DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom")
"""The only devices of the minimal root."""
_WORK_BYTES, _WORK_FILES = 64 << 20, 4096  # of the writable folder; it counts as memory
_NEWNS, _NEWCGROUP, _NEWUTS, _NEWIPC, _NEWUSER, _NEWPID, _NEWNET = (
    0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000,
)  # fmt: skip
_SET_PDEATHSIG, _SET_DUMPABLE, _DROP_BOUND, _SET_SUBREAPER, _NO_NEW_PRIVS = 1, 4, 24, 36, 38
_NOSUID, _NODEV, _NOEXEC, _BIND, _REC, _PRIVATE, _DETACH = 2, 4, 8, 4096, 16384, 1 << 18, 2
_MOUNT_SETATTR, _AT_FDCWD, _RECURSIVE = 442, -100, 0x8000
_ATTR_RDONLY, _ATTR_NOSUID, _ATTR_NODEV, _ATTR_NOEXEC = 1, 2, 4, 8


def confine(config: dict[str, Any]) -> dict[str, str]:
    """Activate the protections and continue in a process inside of them.

    Args:
        config: `outside` is "own" when this process makes the namespaces and "bubblewrap" when it is in them already;
            `paths` and `links` are what the minimal root shows, `work` is the only folder that the program can write
            to, `folder` is where the root is made, `user` is the user and group id to change to (null to stay), and the
            limits are those of `sandbox.launch.Limits`.

    Returns:
        For each protection that is missing the reason.
    """
    missing: dict[str, str] = {}
    call("prctl", _SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if config["outside"] == "own":
        _confine_here(config, missing)
    else:
        _mount_work(config["work"], os.geteuid())
        os.chdir(config["work"])
        _drop_capabilities()
    # The kernel counts the processes of a user in its namespace: without one, all that the user runs would count.
    _limit(config, processes=config["user"] is not None or "processes" not in missing)
    call("prctl", _NO_NEW_PRIVS, 1, 0, 0, 0)
    try:
        paths = [*config["paths"], *DEVICES]
        landlock.restrict(paths, [os.getcwd(), *DEVICES[:1]])
    except OSError as error:
        missing["landlock"] = str(error)
    try:
        refuse_system_calls()
    except OSError as error:
        missing["system_calls"] = str(error)
    return missing


def _confine_here(config: dict[str, Any], missing: dict[str, str]) -> None:
    try:
        _enter_namespaces()
    except OSError as error:
        missing.update(dict.fromkeys(("files", "network", "processes"), str(error)))
        call("prctl", _SET_SUBREAPER, 1, 0, 0, 0)
    first = os.fork()
    if first:
        _, status = os.waitpid(first, 0)
        if missing:
            _kill_descendants()
        os._exit(os.waitstatus_to_exitcode(status) & 255)
    call("prctl", _SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    proc = os.open("/proc/self", os.O_PATH)
    if not missing:
        try:
            _enter_root(config)
        except OSError as error:
            missing["files"] = str(error)
    if config["user"] is not None:
        try:
            _become(config["user"], proc, in_namespace="network" not in missing)
        except OSError as error:
            missing["user"] = str(error)
    os.close(proc)
    os.chdir(config["work" if "files" not in missing else "folder"])
    _drop_capabilities()


def _enter_namespaces() -> None:
    """Enter new namespaces: as root directly, as an ordinary user with the rights of a new user namespace."""
    kinds = _NEWNS | _NEWPID | _NEWNET | _NEWIPC | _NEWUTS | _NEWCGROUP
    user, group = os.geteuid(), os.getegid()
    if user == 0:
        call("unshare", kinds)
        return
    proc = os.open("/proc/self", os.O_PATH)
    _enter_user_namespace(kinds, user, group, proc)
    os.close(proc)


def _enter_user_namespace(more: int, user: int, group: int, proc: int) -> None:
    """Enter a user namespace in which the ids of this process are what they are outside.

    Args:
        more: the flags of other namespaces to enter.
        user: the id of the user of this process.
        group: the id of its group.
        proc: a descriptor of the folder of this process in /proc.
    """
    call("unshare", more | _NEWUSER)
    for name, text in (("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1")):
        descriptor = os.open(name, os.O_WRONLY, dir_fd=proc)
        os.write(descriptor, text.encode())
        os.close(descriptor)


def _enter_root(config: dict[str, Any]) -> None:
    """Change to a root file system that shows only the given paths, read-only, three devices and a writable folder."""
    root = config["folder"]
    owner = config["user"] if config["user"] is not None else os.geteuid()
    call("mount", None, b"/", None, _REC | _PRIVATE, None)
    call("mount", b"tmpfs", root.encode(), b"tmpfs", _NOSUID | _NODEV, b"size=1m,nr_inodes=4096,mode=0755")
    for path in config["paths"]:
        _bind(path, root)
    for device in DEVICES:
        _make_empty(root + device)
    for path, target in config["links"]:
        os.makedirs(os.path.dirname(root + path), exist_ok=True)
        if not os.path.lexists(root + path):
            os.symlink(target, root + path)
    os.makedirs(root + config["work"], exist_ok=True)
    _set_attributes(root, _ATTR_RDONLY | _ATTR_NOSUID | _ATTR_NODEV, recursive=True)
    for device in DEVICES:
        call("mount", device.encode(), (root + device).encode(), None, _BIND, None)
        _set_attributes(root + device, _ATTR_RDONLY | _ATTR_NOSUID | _ATTR_NOEXEC)
    _mount_work(root + config["work"], owner)
    os.chdir(root)
    call("pivot_root", b".", b".")
    call("umount2", b".", _DETACH)
    os.chdir("/")


def _mount_work(path: str, owner: int) -> None:
    options = f"size={_WORK_BYTES},nr_inodes={_WORK_FILES},mode=0700,uid={owner},gid={owner}"
    call("mount", b"tmpfs", path.encode(), b"tmpfs", _NOSUID | _NODEV, options.encode())


def _bind(path: str, root: str) -> None:
    if os.path.isdir(path):
        os.makedirs(root + path, exist_ok=True)
    else:
        _make_empty(root + path)
    call("mount", path.encode(), (root + path).encode(), None, _BIND | _REC, None)


def _make_empty(path: str) -> None:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w"):
        pass


def _set_attributes(path: str, attributes: int, *, recursive: bool = False) -> None:
    packed = struct.pack("QQQQ", attributes, 0, 0, 0)
    flags = _RECURSIVE if recursive else 0
    call("syscall", _MOUNT_SETATTR, _AT_FDCWD, path.encode(), flags, packed, len(packed))


def _become(user: int, proc: int, *, in_namespace: bool) -> None:
    """Become another user and group, which owns nothing; inside of namespaces, with a user namespace of its own."""
    for capability in range(64):
        try:
            call("prctl", _DROP_BOUND, capability, 0, 0, 0)
        except OSError as error:
            if error.errno == errno.EINVAL:  # there are no more capabilities
                break
            raise
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)
    call("prctl", _SET_DUMPABLE, 1, 0, 0, 0)  # changing the user cleared it, and its own /proc files went to root
    call("prctl", _SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if in_namespace:
        _enter_user_namespace(0, user, user, proc)


def _drop_capabilities() -> None:
    """Drop all capabilities, also those in a new user namespace."""
    call("capset", CAPABILITY_HEADER, bytes(24))


def _limit(config: dict[str, Any], *, processes: bool) -> None:
    """Set the resource limits as hard limits, so that the program cannot raise them.

    At the soft limit on CPU time the kernel sends SIGXCPU; at the hard limit it kills the process. It counts this time
    by its clock ticks, those that another guest of the machine used included: on a shared machine a process with one
    second was ended after 0.90 s. That is less than machines differ in speed, so it does not change the verdict.
    """
    seconds, memory = max(1, round(config["seconds"])), config["memory_mb"] << 20
    for kind, soft, hard in (
        (resource.RLIMIT_CPU, seconds, seconds + 1),
        (resource.RLIMIT_AS, memory, memory),
        (resource.RLIMIT_FSIZE, config["file_mb"] << 20, config["file_mb"] << 20),
        (resource.RLIMIT_NOFILE, 64, 64),
        (resource.RLIMIT_CORE, 0, 0),
        (resource.RLIMIT_MSGQUEUE, 0, 0),
        (resource.RLIMIT_MEMLOCK, 0, 0),
    ):
        resource.setrlimit(kind, (soft, hard))
    if processes:
        resource.setrlimit(resource.RLIMIT_NPROC, (config["processes"], config["processes"]))


def _kill_descendants() -> None:
    """Kill processes that the program left behind, without a process namespace; this process is their subreaper."""
    for _ in range(200):
        with open(f"/proc/self/task/{os.getpid()}/children") as file:
            children = [int(pid) for pid in file.read().split()]
        if not children:
            return
        for pid in children:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
