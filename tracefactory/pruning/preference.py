"""Preference pairs from pruning: the pruned trace is chosen, the raw one rejected.

Source: Efficient Long CoT Reasoning (arXiv 2505.18440), whose preference stage prefers the pruned to the original
trace of the same question. Both answers are right there, so the pair teaches length alone.
"""

from __future__ import annotations

from tracefactory.core.rows import Frozen, Trace, Verdict
from tracefactory.pruning.base import correct
from tracefactory.pruning.derivation import Unit, edited, read_derivation, restored


class Pair(Frozen):
    """One preference: completions as a student would write them, both verified, and their lengths in `unit`."""

    chosen: str
    rejected: str
    chosen_verdict: Verdict
    rejected_verdict: Verdict
    chosen_length: int
    rejected_length: int
    unit: Unit


class Unpaired(Frozen):
    """A trace that gives no pair, and why."""

    reason: str
    detail: str


def pair(trace: Trace) -> Pair | Unpaired:
    """Return the pair of a pruned row and its parent, or the reason why there is none."""
    derivation, found = edited(trace), restored(trace)
    if derivation is None or found is None or derivation.edit is None:
        stands = read_derivation(trace)
        reason = "not_pruned" if stands is None or stands.fallback is None else stands.fallback
        return Unpaired(reason=reason, detail="the raw trace stands, so there is nothing to prefer to it")
    raw, lengths = found[0].trace, derivation.edit.lengths
    if trace.verdict is None or not correct(trace.verdict):
        return Unpaired(reason="chosen_not_verified", detail="the pruned trace has no verdict of a right answer")
    if raw.verdict is None or not correct(raw.verdict):
        return Unpaired(reason="rejected_not_verified", detail="the raw trace has no verdict of a right answer")
    if lengths.pruned >= lengths.parent:
        detail = f"{lengths.pruned} {lengths.unit} pruned, {lengths.parent} raw"
        return Unpaired(reason="chosen_not_shorter", detail=detail)
    return Pair(
        chosen=trace.text,
        rejected=raw.text,
        chosen_verdict=trace.verdict,
        rejected_verdict=raw.verdict,
        chosen_length=lengths.pruned,
        rejected_length=lengths.parent,
        unit=lengths.unit,
    )
