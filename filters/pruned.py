"""Keep the traces that a prune stage shortened or rewrote, not those whose raw text stands."""

from tracefactory.filters import KEEP, Decision, Params, Trace, drop, trace_filter
from tracefactory.pruning import edited, read_derivation


class PrunedParams(Params):
    """There is nothing to set."""


@trace_filter
def pruned(trace: Trace, params: PrunedParams) -> Decision:
    """Keep pruned traces; why the raw text stands is the reason otherwise."""
    if edited(trace) is None:
        derivation = read_derivation(trace)
        if derivation is None or derivation.fallback is None:
            return drop("not_pruned", "no stage pruned it")
        return drop(derivation.fallback, derivation.detail)
    return KEEP
