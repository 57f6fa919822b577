"""The processes of the sandbox: confine them, then run one program, with tests in a process of their own.

The first process makes the namespaces. The second is the first of the new process namespace, so that all processes in
it die with it. The third runs the program, and a fourth the tests: only that one has the tests and the pipe that says
how they ended, and the program cannot read its memory.
"""

from __future__ import annotations

import marshal
import os
import signal
import sys
import time
import types
from collections.abc import Callable
from typing import NoReturn

from tracefactory.sandbox.inside.confine import confine
from tracefactory.sandbox.inside.kernel import call
from tracefactory.sandbox.inside.status import MOST_DESCRIPTORS, STATUS, tell

_SET_DUMPABLE = 4
_LAST_WORDS = 1.0  # seconds for a program that has closed its pipes to say why


def main() -> None:
    """Confine this process, and run the program and its tests in children of it; exits with the status of the program.

    The children leave through the end of this function, so that threads and exit handlers of a program run as usual.
    """
    try:
        role = _start(*map(int, sys.argv[1:4]))
    except BaseException:  # noqa: BLE001  # nothing of the program has run in this process
        import traceback

        traceback.print_exc()
        os._exit(STATUS["broken"])
    role()


def _start(config_fd: int, result_fd: int, tests_fd: int) -> Callable[[], None]:
    """Start the children and exit when they have ended; return what to do in a child."""
    with os.fdopen(config_fd, "rb") as file:
        config = marshal.loads(file.read())  # from our own process; `json` takes 10 ms to import
    os.environ.clear()
    if config["probe"]:
        from tracefactory.sandbox.inside.probes import allocate, probe
    elif config["stdio"]:
        stdin = _in_memory(config["stdin"])
    else:
        import socket

        from tracefactory.sandbox.inside import program, tests
    missing = confine(config)
    call("prctl", _SET_DUMPABLE, 0, 0, 0, 0)  # no process may trace or read the processes of this program
    tell(result_fd, {"token": config["token"], "missing": missing})
    if config["probe"] == "memory":
        allocate(config["memory_mb"] // 2)
        os._exit(0)
    if config["probe"]:
        tell(result_fd, {"token": config["token"], "possible": probe(config)})
        os._exit(0)
    if set(missing) - set(config["allow"]) - {"landlock"}:
        os._exit(STATUS["refused"])
    if config["stdio"]:
        os.close(tests_fd)
        pid = os.fork()
        os.close(result_fd)
        if not pid:
            return lambda: _run_script(config["code"], stdin)
        _leave(_Watch(config["seconds"]).program(pid))
    tests_end, program_end = socket.socketpair()
    tests_pid = os.fork()
    if not tests_pid:
        program_end.close()
        return lambda: tests.run(tests_end, tests_fd, result_fd)
    for descriptor in (result_fd, tests_fd):
        os.close(descriptor)
    tests_end.close()
    program_pid = os.fork()
    if not program_pid:
        return lambda: program.serve(program_end, config["code"])
    program_end.close()
    return _leave(_Watch(config["seconds"]).both(program_pid, tests_pid))


def _leave(code: int) -> NoReturn:
    """Exit; all processes of the namespace die with this one."""
    os._exit(code & 255)


class _Watch:
    """Waits for the program and the tests, and says how they ended as an exit code."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def program(self, pid: int) -> int:
        """Return the exit code of a program without tests."""
        while True:
            found, status, usage = os.wait4(-1, os.WUNTRACED)
            if found != pid:
                continue
            if os.WIFSTOPPED(status):
                return STATUS["stopped"]
            code = os.waitstatus_to_exitcode(status)
            if self._out_of_time(code, usage.ru_utime + usage.ru_stime):
                return STATUS["cpu_time"]
            return 1 if code in STATUS.values() else code

    def both(self, program: int, tests: int) -> int:
        """Return the exit code of the tests; why there is none when the program kept them from ending.

        Tests that used up their processor time while the program used hardly any loop by themselves; otherwise the
        program kept them busy, with a generator without an end, say.
        """
        ended: dict[int, tuple[int, float]] = {}
        while tests not in ended:
            if not self._wait(ended, program, tests):
                return STATUS["stopped"]
        code, used = ended[tests]
        if self._out_of_time(code, used):
            if program not in ended:
                os.kill(program, signal.SIGKILL)
                self._wait(ended, program, tests)
            return STATUS["cpu_time" if ended[program][1] >= self.seconds / 10 else "tests_time"]
        if code != STATUS["left"]:
            return 1 if code in STATUS.values() else code
        end = time.monotonic() + _LAST_WORDS
        while program not in ended and time.monotonic() < end:
            self._wait(ended, program, tests, os.WNOHANG)
            time.sleep(0.005)
        if program in ended and self._out_of_time(*ended[program]):
            return STATUS["cpu_time"]
        return STATUS["left"]

    def _wait(self, ended: dict[int, tuple[int, float]], program: int, tests: int, options: int = 0) -> bool:
        """Wait for one process; return False when the program or the tests have been stopped by a signal."""
        pid, status, usage = os.wait4(-1, os.WUNTRACED | options)
        if pid and os.WIFSTOPPED(status):
            return pid not in (program, tests)
        if pid:
            ended[pid] = os.waitstatus_to_exitcode(status), usage.ru_utime + usage.ru_stime
        return True

    def _out_of_time(self, code: int, used: float) -> bool:
        return code == -signal.SIGXCPU or (code == -signal.SIGKILL and used >= self.seconds / 2)


def _in_memory(text: str) -> int:
    """Return the descriptor of a file in memory; confined processes cannot make one."""
    descriptor = os.memfd_create("stdin")
    with os.fdopen(os.dup(descriptor), "wb") as file:
        file.write(text.encode())
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor


def _run_script(code: str, stdin: int) -> None:
    """Run the program as a script, with no descriptors but the standard ones."""
    os.dup2(stdin, 0)
    os.closerange(3, MOST_DESCRIPTORS)
    module = types.ModuleType("__main__")
    sys.modules["__main__"] = module
    sys.argv = ["solution.py"]
    exec(compile(code, "solution.py", "exec"), module.__dict__)
