"""What a view is: one published form of a trace, with a declared schema, registered by name in a file of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from tracefactory.core.registry import Registry
from tracefactory.core.schema import TRACE_SCHEMA, Thinking, Trace

Row = dict[str, Any]
_BATCH_ROWS = 256


class ViewError(ValueError):
    """A view cannot represent a trace. `reason` is a stable snake_case identifier, `detail` a sentence."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail

    def __reduce__(self) -> tuple[type[ViewError], tuple[str, str]]:
        return type(self), (self.reason, self.detail)


@dataclass(frozen=True)
class View:
    """One published form of a trace: a named, versioned row of exactly `schema`.

    `rows` turns a trace into its row, or raises ViewError; it never drops anything silently. `version` goes up when the
    rows of the same traces change. `summary` is one sentence for the dataset card. What a `partial` view cannot
    represent is left out of it alone; of any other view, out of the whole dataset.
    """

    name: str
    version: str
    summary: str
    schema: pa.Schema
    rows: Callable[[Trace], Row]
    partial: bool = False


VIEWS: Registry[View] = Registry("view", "tracefactory.views")
"""Every view by name."""

TRACKING = ("id", "problem_id", "style", "teacher", "prompt_tokens", "completion_tokens")
"""Columns that every view carries, so that a row can be traced back. Token counts are the teacher server's."""


def tracking_fields() -> list[pa.Field]:
    """Return the Arrow fields of TRACKING, with the types that the trace table declares."""
    return [pa.field(name, pa.string() if name == "problem_id" else TRACE_SCHEMA.field(name).type) for name in TRACKING]


def tracking(trace: Trace) -> Row:
    """Return the values of TRACKING for a trace."""
    return {name: getattr(trace, name) for name in TRACKING}


def view(
    *, name: str, version: str, summary: str, schema: pa.Schema, partial: bool = False
) -> Callable[[Callable[[Trace], Row]], View]:
    """Return a decorator that registers a function from a trace to its row as the view `name`."""

    def register(rows: Callable[[Trace], Row]) -> View:
        made = View(name=name, version=version, summary=summary, schema=schema, rows=rows, partial=partial)
        return VIEWS.register(name)(made)

    return register


def tables(chosen: View, traces: Iterable[Trace], refused: Callable[[Trace, ViewError], None]) -> Iterator[pa.Table]:
    """Yield the rows of `traces` as Arrow tables of exactly the view's schema, a few hundred rows at a time.

    A trace that the view cannot represent is handed to `refused`, which must record it. A value that does not fit the
    schema raises: that is a mistake in the view.
    """
    batch: list[Row] = []
    for trace in traces:
        try:
            batch.append(chosen.rows(trace))
        except ViewError as error:
            refused(trace, error)
            continue
        if len(batch) == _BATCH_ROWS:
            yield pa.Table.from_pylist(batch, schema=chosen.schema)
            batch = []
    if batch:
        yield pa.Table.from_pylist(batch, schema=chosen.schema)


def require_trainable(trace: Trace) -> None:
    """Raise ViewError unless the trace is a complete answer that a student can be trained to write.

    A message with an unclosed, doubled or nested think tag would teach the student to write one, and chat templates cut
    at the tag: https://github.com/huggingface/transformers renders such turns by splitting at `</think>`.
    """
    if trace.error is not None:
        raise ViewError("failed_sample", f"the sample failed: {trace.error}")
    if trace.refusal is not None:
        raise ViewError("refused_sample", "the teacher refused")
    if trace.thinking is Thinking.OPEN:
        raise ViewError("thinking_open", "the reasoning was never closed")
    if not trace.answer_text.strip():
        raise ViewError("answer_empty", "there is no answer text after the reasoning")
    for part, text in (("reasoning", trace.reasoning), ("answer", trace.answer_text)):
        if "<think>" in text or "</think>" in text:
            raise ViewError("think_tag_inside", f"the {part} contains a think tag of its own")
