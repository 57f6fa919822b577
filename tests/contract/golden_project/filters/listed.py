"""Drop questions that a declared file lists; a filter on text."""

from tracefactory.filters import KEEP, Decision, Files, Params, Trace, drop, trace_filter


class ListedParams(Params):
    """Nothing to choose."""


@trace_filter(files=("data/listed.txt",))
def listed(trace: Trace, params: ListedParams, files: Files) -> Decision:
    """Drop traces of questions that the file lists."""
    return drop("listed") if trace.problem.question in files["data/listed.txt"].splitlines() else KEEP
