"""Keep traces whose every step follows, for the student, from the few steps before it."""

from pydantic import Field

from tracefactory.filters import Rules, StudentBand, band, column_filter
from tracefactory.students.names import local_name


class LocalNaturalnessParams(StudentBand):
    """`min` and `max` bound local naturalness, in nats per token (below 0; higher is more natural)."""

    window: int = Field(default=4, ge=1, description="Steps of context it was measured with.")


@column_filter
def local_naturalness(params: LocalNaturalnessParams) -> Rules:
    """Keep traces whose local naturalness (arXiv 2510.03988) under the student lies in the band."""
    name = f"{params.student}/{local_name(params.window)}"
    yield from band(name, params, below="locally_unnatural", above="locally_too_natural", unit="nats per token")
