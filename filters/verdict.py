"""Rejection sampling: keep the traces whose answer was verified as wanted."""

from pydantic import Field

from tracefactory.filters import KEEP, Decision, Outcome, Params, Trace, drop, trace_filter


class VerdictParams(Params):
    """`keep`: the outcomes that stay, out of correct, incorrect, unverifiable and verifier_error."""

    keep: tuple[Outcome, ...] = Field(default=(Outcome.CORRECT,), min_length=1)


@trace_filter
def verdict(trace: Trace, params: VerdictParams) -> Decision:
    """Keep traces whose verdict is one of `keep`; a trace that no stage verified is dropped as such."""
    if trace.verdict is None:
        return drop("not_verified")
    if trace.verdict.outcome in params.keep:
        return KEEP
    return drop(trace.verdict.outcome.value, trace.verdict.detail or f"stated {trace.verdict.extracted!r}")
