"""Preference pairs of pruned and raw traces: what direct preference optimisation reads."""

from __future__ import annotations

import pyarrow as pa

from tracefactory.core.schema import Trace
from tracefactory.pruning import Unpaired, pair
from tracefactory.publish.views import Row, ViewError, require_trainable, tracking, tracking_fields, view

_MESSAGES = pa.list_(pa.struct([pa.field("role", pa.string()), pa.field("content", pa.string())]))


@view(
    name="preference",
    version="1",
    summary="`prompt`, `chosen` (the pruned trace) and `rejected` (the raw one) as message lists; both answers are "
    "verified, and the lengths are in `length_unit`.",
    schema=pa.schema(
        [
            *tracking_fields(),
            *(pa.field(name, _MESSAGES) for name in ("prompt", "chosen", "rejected")),
            *(pa.field(name, pa.string()) for name in ("chosen_outcome", "rejected_outcome")),
            *(pa.field(name, pa.int64()) for name in ("chosen_length", "rejected_length")),
            pa.field("length_unit", pa.string()),
        ]
    ),
    partial=True,
)
def preference(trace: Trace) -> Row:
    """Return the pair, in the layout of TRL (https://huggingface.co/docs/trl/dataset_formats).

    A trace that no stage pruned, whose raw form is not verified, or that did not get shorter, has none.
    """
    require_trainable(trace)
    found = pair(trace)
    if isinstance(found, Unpaired):
        raise ViewError(found.reason, found.detail)
    return {
        **tracking(trace),
        "prompt": [{"role": "user", "content": trace.problem.question}],
        "chosen": [{"role": "assistant", "content": found.chosen}],
        "rejected": [{"role": "assistant", "content": found.rejected}],
        "chosen_outcome": found.chosen_verdict.outcome.value,
        "rejected_outcome": found.rejected_verdict.outcome.value,
        "chosen_length": found.chosen_length,
        "rejected_length": found.rejected_length,
        "length_unit": found.unit,
    }
