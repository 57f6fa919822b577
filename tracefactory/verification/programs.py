"""The verdict on a program that did not end by itself, and the message about one that failed.

A program that runs for too long, or holds too much memory, is incorrect where the task says how much it may: where
`seconds` or `memory_mb` is in the spec of the problem or in the policy of the stage. Without that, the limit is this
package's own, and reaching a limit of ours is never a verdict of incorrect; nor is a time-out that a busy machine
caused.

Details are from a closed vocabulary with numbers: what a program wrote may be what it read, so it is not repeated.
"""

from __future__ import annotations

from tracefactory.answers.extraction import Extraction
from tracefactory.core.rows import Frozen, Outcome, Verdict
from tracefactory.sandbox.launch import Limits
from tracefactory.sandbox.run import RunResult
from tracefactory.sandbox.usage import stopped_by
from tracefactory.verification.base import Verifier

TIME_LIMITS = (
    "a program that reaches a limit on time that the task declares (`seconds`) is incorrect (time_limit) and no "
    "verifier_error, unless the machine kept it from running"
)
"""What version 3 of the verifiers that run programs changed."""
CONFINED = (
    "programs see only the interpreter and its libraries, and all their processes share one limit on memory; details "
    "repeat no output of a program"
)
"""What version 4 of the verifiers that run programs changed."""
_FAULTS = {
    "output": ("output_limit", "it wrote more than {} bytes"),
    "stopped": ("stopped", "it stopped itself or the tests with a signal"),
    "left": ("program_exited", "it exited, or closed its pipes, before the tests ended"),
}


def unfinished(
    verifier: Verifier, run: RunResult, limits: Limits, params: Frozen, extraction: Extraction | None = None
) -> Verdict | None:
    """Return the verdict on a program that did not end by itself, or whose tests could not run.

    Args:
        verifier: the verifier that ran the program.
        run: the run.
        limits: the limits of the run.
        params: the parameters of the verifier; limits are declared where they are set.
        extraction: the program.

    Returns:
        None for a program that ended, and tests that passed or failed.
    """
    if run.ended in ("cpu_time", "wall_time", "tests_time"):
        outcome, method, detail = _out_of_time(run, limits, declared="seconds" in params.model_fields_set)
    elif run.ended == "memory":
        outcome, method = Outcome.INCORRECT, "memory_limit"
        detail = f"its processes held more than {limits.memory_mb} MB"
        if "memory_mb" not in params.model_fields_set:
            outcome = Outcome.VERIFIER_ERROR
            detail += ", which is the default: with `memory_mb` in its spec, the task says how much it may hold"
    elif run.ended in _FAULTS:
        outcome, (method, detail) = Outcome.INCORRECT, _FAULTS[run.ended]
        detail = detail.format(limits.output_bytes)
    elif run.tests == "no_test_ran":
        outcome, method = Outcome.VERIFIER_ERROR, "no_test_ran"
        detail = (
            "no assertion about the program ran: give statements with `assert`, functions `test_...` without "
            "parameters, a `unittest.TestCase`, or a function `check` with `entry_point` in the spec"
        )
    elif run.tests == "tests_broken":
        outcome, method = Outcome.VERIFIER_ERROR, "tests_broken"
        detail = f"the tests cannot run: {run.error or 'an exception'} in test {run.failed_test}"
    else:
        return None
    return verifier.verdict(outcome, method, extraction, detail, run.log)


def failure(run: RunResult) -> str:
    """Return how a program failed, in words that no program chose."""
    if run.tests == "failed":
        return f"test {run.failed_test}: {run.error or 'an exception of another kind'}"
    return f"exit code {run.code}"


def _out_of_time(run: RunResult, limits: Limits, *, declared: bool) -> tuple[Outcome, str, str]:
    usage = run.usage
    used = f"{usage.cpu:.1f} s of processor time in {usage.wall:.1f} s"
    limit = f"the limit is {limits.seconds:g} s of processor time and {limits.wall_seconds:g} s in all"
    if run.ended == "tests_time":
        detail = f"the tests did not end by themselves: {used}"
    elif run.ended == "wall_time" and stopped_by(usage, limits.seconds) == "machine":
        detail = f"the machine was busy: {used}, kept from running for {usage.kept_from_running:.1f} s"
    elif not declared:
        detail = f"{used}; {limit}, which is the default: with `seconds` in its spec, the task says how long it may run"
    else:
        return Outcome.INCORRECT, "time_limit", f"{used}; {limit}"
    return Outcome.VERIFIER_ERROR, "timeout", detail
