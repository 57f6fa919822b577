"""The second form of a pruned trace: the raw text, with the pruned spans out of the loss."""

from __future__ import annotations

import pyarrow as pa

from tracefactory.core.schema import Trace
from tracefactory.pruning import Masked, restored
from tracefactory.pruning import masked as masked_form
from tracefactory.publish.views import Row, ViewError, require_trainable, tracking, tracking_fields, view

_MESSAGES = pa.list_(pa.struct([pa.field("role", pa.string()), pa.field("content", pa.string())]))
_SPANS = pa.list_(pa.struct([pa.field("start", pa.int64()), pa.field("end", pa.int64())]))


@view(
    name="masked",
    version="1",
    summary="`prompt` and `completion` as in `sft`, with the full reasoning of the raw trace; `masked` are the "
    "[start, end) character ranges of the completion that pruning cut and that carry no loss.",
    schema=pa.schema(
        [
            *tracking_fields(),
            pa.field("prompt", _MESSAGES),
            pa.field("completion", _MESSAGES),
            pa.field("masked", _SPANS),
        ]
    ),
    partial=True,
)
def masked(trace: Trace) -> Row:
    """Return the raw reasoning with the answer of the pruned trace; nothing is masked where the raw trace stands.

    Segment-level selective fine-tuning reports that loss on the kept parts alone, in their full context, does better
    than training on the shortened text. `tracefactory.pruners.loss_mask` turns the spans into a mask over tokens.
    """
    require_trainable(trace)
    found = restored(trace)
    form = Masked(text=trace.text, spans=())
    if found is not None:
        item, result = found
        if result.added:
            raise ViewError("not_a_selection", "the pruned trace holds text that the raw one does not")
        form = masked_form(item, result)
    return {
        **tracking(trace),
        "prompt": [{"role": "user", "content": trace.problem.question}],
        "completion": [{"role": "assistant", "content": form.text}],
        "masked": [{"start": start, "end": end} for start, end in form.spans],
    }
