"""Programs: run them with unit tests (in the style of HumanEval and MBPP), or compare their output for given input."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import ClassVar

from pydantic import Field

from tracefactory.answers.extraction import Extraction
from tracefactory.core.rows import Frozen, Outcome, Verdict
from tracefactory.sandbox.launch import Limits
from tracefactory.sandbox.programs import Program, defines, find_program
from tracefactory.sandbox.run import RunResult, run_program, run_tests
from tracefactory.verification.base import Verifier, VerifyTask, verifier
from tracefactory.verification.programs import CONFINED, TIME_LIMITS, failure, unfinished

_CALLED = re.compile(r"\b([A-Za-z_]\w*)\s*\(")

_OVERHEAD = 5.0
"""Seconds for starting the sandbox on a busy machine."""


class Case(Frozen):
    """One input of a program and the output that it must print."""

    stdin: str = Field(description="The standard input of the program.")
    stdout: str = Field(description="The output that the program must print.")


class CodeParams(Frozen):
    """The tests of a program and the limits of its runs."""

    tests: tuple[str, ...] = Field(
        default=(),
        description="Statements to run after it, such as assertions (MBPP), a function `check` (HumanEval), functions "
        "`test_...` or a `unittest.TestCase`; by default those of the problem.",
    )
    entry_point: str = Field(
        default="", description="The function that `check` is called with, unless the tests call it."
    )
    setup: str = Field(
        default="", description="Code to run between the program and its tests, as in MBPP (Austin et al. 2021)."
    )
    prompt: str = Field(
        default="", description="The beginning of the program, put before an answer that only continues it."
    )
    cases: tuple[Case, ...] = Field(default=(), description="Input and output, instead of tests.")
    seconds: float = Field(
        default=5.0,
        gt=0,
        description="Processor time that each run may take, in seconds. Where it is declared, a program that takes "
        "more, or sleeps for 5 s + 4 times as long, is incorrect (time_limit); at the default, it is a verifier_error.",
    )
    memory_mb: int = Field(default=1024, ge=64, description="Memory that each run may take, in MB.")

    def limits(self) -> Limits:
        """Return the limits of one run."""
        return Limits(seconds=self.seconds, memory_mb=self.memory_mb)


@verifier
class CodeVerifier(Verifier):
    """Run the last program of the answer in the sandbox. It is correct when every test ran to its end."""

    name = "code"
    version = "4"
    changes: ClassVar[Mapping[str, str]] = {
        "3": f"{TIME_LIMITS}; where the tests loop by themselves, the program is not incorrect, but a verifier_error",
        "4": f"{CONFINED}; functions `test_...`, test cases and `from solution import` of tests run; tests that assert "
        "nothing about the program (no_test_ran) or cannot run (tests_broken) are verifier_errors; a program cannot "
        "replace names of Python that the tests use",
    }
    runs_code = True
    Params = CodeParams

    def quick(self, task: VerifyTask, params: CodeParams) -> Verdict | None:
        """Return `unverifiable` without tests or a program, None when the program must run."""
        params = _with_tests(task, params)
        if not params.tests and not params.cases:
            return self.verdict(Outcome.UNVERIFIABLE, "no_tests")
        if self._program(task, params) is None:
            return self.verdict(Outcome.UNVERIFIABLE, "no_answer")
        return None

    def seconds_needed(self, params: CodeParams) -> float:
        """Return the limit of all runs and the time to start the sandbox."""
        return max(1, len(params.cases)) * (params.limits().wall_seconds + _OVERHEAD)

    def full(self, task: VerifyTask, params: CodeParams) -> Verdict:
        """Run the program with its tests, or once for each case."""
        params = _with_tests(task, params)
        program = self._program(task, params)
        if program is None:
            return self.verdict(Outcome.UNVERIFIABLE, "no_answer")
        shown = Extraction(program.code, program.start, program.end, "code")
        if params.cases:
            return self._cases(program, params, shown)
        run = run_tests(
            whole_program(program.code, params),
            params.tests,
            params.limits(),
            setup=f"{params.prompt if params.entry_point else ''}\n{params.setup}",
            entry_point=params.entry_point,
        )
        return self._judge(run, run.passed, shown, params, "tests")

    def _program(self, task: VerifyTask, params: CodeParams) -> Program | None:
        names = (
            (params.entry_point,)
            if params.entry_point
            else tuple(dict.fromkeys(_CALLED.findall("\n".join(params.tests))))
        )
        return find_program(task.answer_text, names=names, cut_off=task.cut_off)

    def _cases(self, program: Program, params: CodeParams, shown: Extraction) -> Verdict:
        for case in params.cases:
            run = run_program(program.code, case.stdin, params.limits())
            passed = run.ended == "exit" and run.code == 0 and same_output(run.stdout, case.stdout)
            if not passed:
                return self._judge(run, False, shown, params, "cases")
        return self.verdict(Outcome.CORRECT, "cases", shown)

    def _judge(self, run: RunResult, passed: bool, shown: Extraction, params: CodeParams, method: str) -> Verdict:
        if verdict := unfinished(self, run, params.limits(), params, shown):
            return verdict
        if passed:
            return self.verdict(Outcome.CORRECT, method, shown)
        return self.verdict(Outcome.INCORRECT, method, shown, failure(run), run.log)


def _with_tests(task: VerifyTask, params: CodeParams) -> CodeParams:
    return params if params.tests else params.model_copy(update={"tests": task.problem.tests})


def whole_program(code: str, params: CodeParams) -> str:
    """Return a program with the setup after it and, if it only continues the prompt, the prompt before it.

    Args:
        code: the program of the answer.
        params: the setup, the prompt and the entry point.
    """
    if params.prompt and not (params.entry_point and defines(code, params.entry_point)):
        code = params.prompt + code
    elif params.prompt:  # the program may need other definitions and imports of the prompt
        code = f"{params.prompt}\n    pass\n\n{code}" if params.entry_point else f"{params.prompt}\n{code}"
    return f"{code}\n{params.setup}"


def same_output(printed: str, wanted: str) -> bool:
    """Return whether two outputs are equal line by line, except for trailing white space and the form of numbers.

    Args:
        printed: the output of the program.
        wanted: the output that it must print.
    """
    left, right = ([line.rstrip() for line in text.strip().splitlines()] for text in (printed, wanted))
    if len(left) != len(right):
        return False
    for one, two in zip(left, right, strict=True):
        words = one.split(), two.split()
        if one != two and not (len(words[0]) == len(words[1]) and all(map(_same_word, *words))):
            return False
    return True


def _same_word(one: str, two: str) -> bool:
    if one == two:
        return True
    if not ("." in one + two or "e" in (one + two).lower()):
        return False
    try:
        a, b = float(one), float(two)
    except ValueError:
        return False
    return abs(a - b) <= 1e-9 * max(1.0, abs(b))
