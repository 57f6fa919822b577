"""Programs checked by unit tests (HumanEval and MBPP styles) or by what they print for given input."""

from __future__ import annotations

import re
from itertools import zip_longest

from pydantic import Field

from tracefactory.answers.extract import Extraction
from tracefactory.core.rows import Frozen, Outcome, Verdict
from tracefactory.sandbox.programs import Program, defines, find_program
from tracefactory.sandbox.run import Limits, RunResult, run_program, run_tests
from tracefactory.verification.base import Verifier, VerifyTask, verifier

_CALLED = re.compile(r"\b([A-Za-z_]\w*)\s*\(")

_OVERHEAD = 5.0
"""Seconds for starting the sandbox on a busy machine."""


class Case(Frozen):
    """What a program reads and what it must print."""

    stdin: str = Field(description="What it reads from its standard input.")
    stdout: str = Field(description="What it must print.")


class CodeParams(Frozen):
    """How to test a program."""

    tests: tuple[str, ...] = Field(
        default=(),
        description="Statements to run after it, such as assertions (MBPP) or a function `check` (HumanEval); by "
        "default those of the problem.",
    )
    entry_point: str = Field(
        default="", description="The function that `check` is called with, unless the tests call it."
    )
    setup: str = Field(
        default="", description="What runs between the program and its tests, as in MBPP (Austin et al. 2021)."
    )
    prompt: str = Field(
        default="", description="The beginning of the program, put before an answer that only continues it."
    )
    cases: tuple[Case, ...] = Field(default=(), description="Input and output, instead of tests.")
    seconds: float = Field(default=5.0, gt=0, description="Processor time that each run may take, in seconds.")
    memory_mb: int = Field(default=1024, ge=64, description="Memory that each run may take, in MB.")

    def limits(self) -> Limits:
        return Limits(seconds=self.seconds, memory_mb=self.memory_mb)


@verifier
class CodeVerifier(Verifier):
    """Run the last program of the answer in the sandbox. Right means that every test ran to its end."""

    name = "code"
    version = "2"
    Params = CodeParams

    def quick(self, task: VerifyTask, params: CodeParams) -> Verdict | None:
        params = _with_tests(task, params)
        if not params.tests and not params.cases:
            return self.verdict(Outcome.UNVERIFIABLE, "no_tests")
        if self._program(task, params) is None:
            return self.verdict(Outcome.UNVERIFIABLE, "no_answer")
        return None

    def seconds_needed(self, params: CodeParams) -> float:
        return max(1, len(params.cases)) * (params.limits().wall_seconds + _OVERHEAD)

    def full(self, task: VerifyTask, params: CodeParams) -> Verdict:
        params = _with_tests(task, params)
        program = self._program(task, params)
        if program is None:
            return self.verdict(Outcome.UNVERIFIABLE, "no_answer")
        shown = Extraction(program.code, program.start, program.end, "code")
        if params.cases:
            return self._cases(program, params, shown)
        run = run_tests(whole_program(program.code, params), _tests(params), params.limits())
        return self._judge(run, run.passed, shown, "tests")

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
                return self._judge(run, False, shown, "cases")
        return self.verdict(Outcome.CORRECT, "cases", shown)

    def _judge(self, run: RunResult, passed: bool, shown: Extraction, method: str) -> Verdict:
        if run.ended == "timeout":
            return self.verdict(Outcome.VERIFIER_ERROR, "timeout", shown, f"no end after {run.seconds:.1f} s")
        if passed:
            return self.verdict(Outcome.CORRECT, method, shown)
        method = "output_limit" if run.ended == "output" else method
        return self.verdict(Outcome.INCORRECT, method, shown, (run.stderr.strip()[-300:] or f"exit code {run.code}"))


def _with_tests(task: VerifyTask, params: CodeParams) -> CodeParams:
    return params if params.tests else params.model_copy(update={"tests": task.problem.tests})


def whole_program(code: str, params: CodeParams) -> str:
    """Put a completion together with the setup and, where it only continues it, the prompt."""
    if params.prompt and not (params.entry_point and defines(code, params.entry_point)):
        code = params.prompt + code
    elif params.prompt:  # what the prompt imports and defines besides is still needed
        code = f"{params.prompt}\n    pass\n\n{code}" if params.entry_point else f"{params.prompt}\n{code}"
    return f"{code}\n{params.setup}"


def _tests(params: CodeParams) -> list[str]:
    tests = list(params.tests)
    text = "\n".join(tests)
    if params.entry_point and "def check(" in text and not re.search(r"^check\(", text, re.MULTILINE):
        tests.append(f"check({params.entry_point})")
    return tests


def same_output(printed: str, wanted: str) -> bool:
    """Compare output by lines without trailing white space; numbers may differ in how they are written."""
    left, right = ([line.rstrip() for line in text.strip().splitlines()] for text in (printed, wanted))
    return all(a is not None and b is not None and _same_line(a, b) for a, b in zip_longest(left, right))


def _same_line(one: str, two: str) -> bool:
    if one == two:
        return True
    left, right = one.split(), two.split()
    return len(left) == len(right) and all(map(_same_word, left, right))


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
