"""Program-aided traces: run the program of a trace and compare its output with the gold answer.

The answer is the last line that the program prints, as in program of thoughts (Chen et al. 2022) and ToRA (Gou et al.
2023). Output that the trace only claims is ignored.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import ClassVar

from pydantic import Field

from tracefactory.answers.compare import Comparison, ProseError
from tracefactory.answers.quantity_rules import MathParams, UndecidedError
from tracefactory.answers.reading import read
from tracefactory.core.rows import Outcome, Verdict
from tracefactory.maths.symbolic import UnknownError, equivalent, library
from tracefactory.sandbox.launch import Limits
from tracefactory.sandbox.programs import Program, find_program, print_last
from tracefactory.sandbox.run import run_program
from tracefactory.verification.base import Verifier, VerifyTask, verifier
from tracefactory.verification.programs import CONFINED, TIME_LIMITS, failure, unfinished
from tracefactory.verifiers.math import gold_reading

_NUMBER = re.compile(r"[-+]?[0-9]{1,20}(?:[./][0-9]{1,20})?(?:e[-+]?[0-9]{1,3})?")
_OVERHEAD = 5.0
"""Seconds for starting the sandbox and for the comparison."""


class ProgramParams(MathParams):
    """The policies of `math`, and limits for the run. A symbolic library needs more memory than plain Python."""

    seconds: float = Field(
        default=8.0,
        gt=0,
        description="Processor time that the run may take, in seconds. Where it is declared, a program that takes "
        "more, or sleeps for 5 s + 4 times as long, is incorrect (time_limit); at the default, it is a verifier_error.",
    )
    memory_mb: int = Field(default=2048, ge=64, description="Memory that the run may take, in MB.")


@verifier
class ProgramVerifier(Verifier):
    """Run the last code block of answer or reasoning; compare its last line of output."""

    name = "program"
    version = "4"
    changes: ClassVar[Mapping[str, str]] = {
        "3": TIME_LIMITS,
        "4": f"{CONFINED}; `extracted` is what the program printed only where that is right or a number",
    }
    runs_code = True
    Params = ProgramParams

    def quick(self, task: VerifyTask, params: ProgramParams) -> Verdict | None:
        """Return `unverifiable` without a gold answer or a program, None when the program must run."""
        if not (task.problem.answer or "").strip():
            return self.verdict(Outcome.UNVERIFIABLE, "no_gold")
        if self._program(task) is None:
            return self.verdict(Outcome.UNVERIFIABLE, "no_answer")
        return None

    def prepare(self) -> None:
        """Import the computer algebra."""
        library()

    def seconds_needed(self, params: ProgramParams) -> float:
        """Return the limit of the run, and the time to start the sandbox and to compare."""
        return Limits(seconds=params.seconds).wall_seconds + _OVERHEAD

    def full(self, task: VerifyTask, params: ProgramParams) -> Verdict:
        """Run the program and compare the last line of its output with the gold answer."""
        program = self._program(task)
        if program is None:
            return self.verdict(Outcome.UNVERIFIABLE, "no_answer")
        limits = Limits(seconds=params.seconds, memory_mb=params.memory_mb)
        run = run_program(print_last(program.code), "", limits)
        if verdict := unfinished(self, run, limits, params):
            return verdict
        if run.code != 0:
            return self.verdict(Outcome.INCORRECT, "program_failed", detail=failure(run), log=run.log)
        lines = [line for line in run.stdout.splitlines() if line.strip()]
        if not lines:
            return self.verdict(Outcome.UNVERIFIABLE, "no_output")
        return self._compare(task, params, lines[-1].strip())

    def _program(self, task: VerifyTask) -> Program | None:
        found = find_program(task.answer_text, cut_off=task.cut_off)
        return found or find_program(task.reasoning, cut_off=True)

    def _compare(self, task: VerifyTask, params: ProgramParams, printed: str) -> Verdict:
        comparison = Comparison(params, equivalent)
        value = printed.rsplit(":", 1)[-1].strip() if ": " in printed else printed
        try:
            same = comparison.readings(gold_reading(task.problem.answer or ""), read(value))
        except (UndecidedError, UnknownError, ProseError) as error:
            verdict = self.verdict(Outcome.UNVERIFIABLE, "undecided", log=f"{error}\nprinted: {value}")
        else:
            outcome = Outcome.CORRECT if same else Outcome.INCORRECT
            verdict = self.verdict(outcome, f"program_{comparison.method}", log=f"printed: {value}")
        # A text that the program printed may be one that it read, and verdicts are published.
        told = verdict.outcome is Outcome.CORRECT or _NUMBER.fullmatch(value)
        return verdict.model_copy(update={"extracted": value}) if told else verdict
