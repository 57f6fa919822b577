"""Every field of the trace: problem, reasoning, answer, verdict and provenance. No trace is refused for its content.

The one field left out is the wall time of the verdict: it differs from run to run, and the same rows must have the same
digest wherever they were made.
"""

from __future__ import annotations

import math

import pyarrow as pa

from tracefactory.core.fingerprint import canonical
from tracefactory.core.schema import TRACE_SCHEMA, Trace
from tracefactory.publish.views import Row, ViewError, view


def _published(field: pa.Field) -> pa.Field:
    """Return a field of the trace table as published: nullable, without wall times, `measures` as JSON."""
    kind = field.type
    if pa.types.is_struct(kind):
        inner = [kind.field(index) for index in range(kind.num_fields)]
        kind = pa.struct([_published(child) for child in inner if child.name != "seconds"])
    return pa.field(field.name, pa.string() if field.name == "measures" else kind)


_SCHEMA = pa.schema([pa.field("problem_id", pa.string()), *map(_published, TRACE_SCHEMA)])


@view(
    name="raw",
    version="1",
    summary="Every field of the trace: problem, reasoning, answer text, verdict, provenance, tokens and cost.",
    schema=_SCHEMA,
)
def raw(trace: Trace) -> Row:
    """Return the whole trace. `measures`, whose names are open, is a JSON object string."""
    broken = sorted(name for name, value in trace.measures.items() if not math.isfinite(value))
    if broken:
        raise ViewError("measure_not_finite", f"JSON has no value for the measures {', '.join(broken)}")
    return {
        **trace.model_dump(mode="json", exclude={"verdict": {"seconds"}}),
        "problem_id": trace.problem_id,
        "measures": canonical(dict(trace.measures)),
    }
