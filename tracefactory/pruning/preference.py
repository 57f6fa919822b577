"""Preference pairs from pruning: the pruned trace is chosen, its parent is rejected.

Source: Efficient Long CoT Reasoning (arXiv 2505.18440), whose preference stage prefers the pruned trace to the original
one of the same question. Both answers are correct, so the pair teaches only length.
"""

from __future__ import annotations

from tracefactory.core.rows import Frozen, Trace, Verdict
from tracefactory.pruning.base import correct
from tracefactory.pruning.derivation import Unit, edited, read_derivation, restored


class Pair(Frozen):
    """One preference pair: two completions in training form, their verdicts, and their lengths in `unit`."""

    chosen: str
    rejected: str
    chosen_verdict: Verdict
    rejected_verdict: Verdict
    chosen_length: int
    rejected_length: int
    unit: Unit


class Unpaired(Frozen):
    """The reason why a trace gives no pair."""

    reason: str
    detail: str


def pair(trace: Trace) -> Pair | Unpaired:
    """Return the pair of a pruned row and its parent, or the reason why there is no pair."""
    derivation, found = edited(trace), restored(trace)
    if derivation is None or found is None or derivation.edit is None:
        own = read_derivation(trace)
        reason = "not_pruned" if own is None or own.fallback is None else own.fallback
        return Unpaired(reason=reason, detail="the trace was not pruned, so there is no preference")
    raw, lengths = found[0].trace, derivation.edit.lengths
    if trace.verdict is None or not correct(trace.verdict):
        return Unpaired(reason="chosen_not_verified", detail="the pruned trace is not verified as correct")
    if raw.verdict is None or not correct(raw.verdict):
        return Unpaired(reason="rejected_not_verified", detail="the parent trace is not verified as correct")
    if lengths.pruned >= lengths.parent:
        detail = f"{lengths.pruned} {lengths.unit} pruned, {lengths.parent} before"
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
