"""Run untrusted Python programs in the sandbox of this machine.

A program sees a minimal root file system with the interpreter and its libraries, an empty folder of its own, no other
processes and no network; `tracefactory.sandbox.protections` measures what holds here. What it used is measured, too
(`tracefactory.sandbox.usage`), so that a time-out of the program can be told from one of a busy machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tracefactory.sandbox.launch import Ended, Limits, launch
from tracefactory.sandbox.protections import way
from tracefactory.sandbox.usage import Usage


@dataclass(frozen=True)
class RunResult:
    """The result of a program: how it ended, its output, how its tests ended, and what it used.

    `ended` is as in `sandbox.launch.Ended`. `tests` is "passed", "failed", "no_test_ran" or "tests_broken"; "" when the
    tests did not end, or there are none. `failed_test` is the number of the test that failed, from 1, and `error` the
    exception that ended it, if it is one of Python's own. The output is a text of the program: it is never published.
    """

    ended: str
    code: int | None
    stdout: str
    stderr: str
    tests: str
    failed_test: int
    error: str | None
    usage: Usage

    @property
    def passed(self) -> bool:
        """Whether all tests passed."""
        return self.ended == "exit" and self.code == 0 and self.tests == "passed"

    @property
    def log(self) -> str | None:
        """The end of what the program wrote to its standard error."""
        return self.stderr.strip()[-2000:] or None

    @property
    def seconds(self) -> float:
        """The wall time of the run."""
        return self.usage.wall


def run_tests(code: str, tests: Sequence[str], limits: Limits, *, setup: str = "", entry_point: str = "") -> RunResult:
    """Run a program, then tests on its names in a separate process. The result passed if every test finished.

    Args:
        code: the program.
        tests: Python programs that use the names of the program.
        limits: the resource limits.
        setup: code of the problem; its imports and functions are those that the tests see, whatever the program does.
        entry_point: the function that the tests are about; a function `check` of the tests is called with it.

    Raises:
        UserError: when the sandbox does not hold here.
        SandboxError: when it did not start.
    """
    given = {"tests": list(tests), "setup": setup, "entry_point": entry_point}
    return _result(launch(way(), {"code": code}, limits, given))


def run_program(code: str, stdin: str, limits: Limits) -> RunResult:
    """Run a program as a script.

    Args:
        code: the program.
        stdin: the text of its standard input.
        limits: the resource limits.

    Raises:
        UserError: when the sandbox does not hold here.
        SandboxError: when it did not start.
    """
    return _result(launch(way(), {"code": code, "stdin": stdin, "stdio": True}, limits))


def _result(ended: Ended) -> RunResult:
    reply = ended.reply
    return RunResult(
        ended=ended.how,
        code=ended.code,
        stdout=ended.stdout,
        stderr=ended.stderr,
        tests=reply.get("ended", ""),
        failed_test=reply.get("test", 0),
        error=reply.get("error"),
        usage=ended.usage,
    )
