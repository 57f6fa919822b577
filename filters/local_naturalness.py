"""Keep traces whose every step follows, for the student, from the few steps before it."""

from pydantic import Field

from tracefactory.filters import KEEP, Decision, Trace, drop, trace_filter
from tracefactory.students.band import StudentBand
from tracefactory.students.local import local_name


class LocalNaturalnessParams(StudentBand):
    """`min` and `max` bound the local naturalness under `student`, in nats per token (below 0; higher is more natural).

    `window` is the number of steps of context it was measured with.
    """

    window: int = Field(default=4, ge=1)

    def reads_measures(self) -> tuple[str, ...]:
        return (f"{self.student}/{local_name(self.window)}",)


@trace_filter
def local_naturalness(trace: Trace, params: LocalNaturalnessParams) -> Decision:
    """Keep traces whose local naturalness (arXiv 2510.03988) under the student lies in the band."""
    (name,) = params.reads_measures()
    value = trace.measures.get(name)
    if value is None:
        return drop("not_measured", f"the trace has no measure {name}")
    if params.below(value):
        return drop("locally_unnatural", f"{value:.3f} nats per token, at least {params.min:g}")
    if params.above(value):
        return drop("locally_too_natural", f"{value:.3f} nats per token, at most {params.max:g}")
    return KEEP
