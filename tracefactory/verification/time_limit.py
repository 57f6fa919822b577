"""The verdict on a program that reached a time limit: whose limit it was, and what the cause was.

A program that runs for too long is incorrect where the task says how long it may run: where `seconds` is in the spec
of the problem or in the policy of the stage. Without that, the limit is this package's own, and a time-out of ours is
never a verdict of incorrect; nor is one that a busy machine caused.
"""

from __future__ import annotations

from tracefactory.answers.extraction import Extraction
from tracefactory.core.rows import Frozen, Outcome, Verdict
from tracefactory.sandbox.run import Limits, RunResult
from tracefactory.sandbox.usage import stopped_by
from tracefactory.verification.base import Verifier

TIME_LIMITS = (
    "a program that reaches a limit on time that the task declares (`seconds`) is incorrect (time_limit) and no "
    "verifier_error, unless the machine kept it from running"
)
"""What version 3 of the verifiers that run programs changed."""
TIMEOUTS = frozenset({"cpu_time", "wall_time", "tests_time"})
"""The ends of a run that are decided here."""


def out_of_time(
    verifier: Verifier, run: RunResult, limits: Limits, params: Frozen, extraction: Extraction | None = None
) -> Verdict:
    """Return the verdict on a run that reached a time limit.

    Args:
        verifier: the verifier that ran the program.
        run: the run, with an end in `TIMEOUTS`.
        limits: the limits of the run.
        params: the parameters of the verifier; `seconds` is declared where it is set.
        extraction: the program.
    """
    usage = run.usage
    used = f"{usage.cpu:.1f} s of processor time in {usage.wall:.1f} s"
    limit = f"the limit is {limits.seconds:g} s of processor time and {limits.wall_seconds:g} s in all"
    outcome, method = Outcome.VERIFIER_ERROR, "timeout"
    if run.ended == "tests_time":
        detail = f"the tests did not end by themselves: {used}"
    elif run.ended == "wall_time" and stopped_by(usage, limits.seconds) == "machine":
        detail = f"the machine was busy: {used}, kept from running for {usage.kept_from_running:.1f} s"
    elif "seconds" not in params.model_fields_set:
        detail = f"{used}; {limit}, which is the default: with `seconds` in its spec, the task says how long it may run"
    else:
        outcome, method, detail = Outcome.INCORRECT, "time_limit", f"{used}; {limit}"
    return verifier.verdict(outcome, method, extraction, detail)
