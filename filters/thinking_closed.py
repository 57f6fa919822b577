"""Drop traces whose thinking or whose answer was never finished.

A trace that stops in the middle teaches a student not to stop. Closed thinking and a stated answer are among the
checks that published reasoning sets have in common, whatever else they select by.
"""

import re

from tracefactory.filters import KEEP, Decision, Params, Thinking, Trace, drop, trace_filter

# A tag that is left over in either part means that the parts were not told apart as the model meant them.
_TAG = re.compile(r"</?think(ing)?>", re.IGNORECASE)


class ThinkingClosedParams(Params):
    """`required`: also drop traces that have no thinking at all. `finished`: also ask for an answer that was ended."""

    required: bool = False
    finished: bool = True


@trace_filter
def thinking_closed(trace: Trace, params: ThinkingClosedParams) -> Decision:
    """Keep traces whose thinking was closed and whose answer is there and was not cut off."""
    if trace.thinking is Thinking.OPEN:
        return drop("thinking_not_closed", f"finish_reason {trace.finish_reason}")
    if params.required and not trace.reasoning.strip():
        return drop("no_thinking")
    if tag := _TAG.search(trace.reasoning) or _TAG.search(trace.answer_text):
        return drop("stray_thinking_tag", tag[0])
    if params.finished and trace.finish_reason != "stop":
        return drop("answer_not_finished", f"finish_reason {trace.finish_reason}")
    if params.finished and not trace.answer_text.strip():
        return drop("no_answer_text")
    return KEEP
