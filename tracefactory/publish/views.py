"""The interface of views: published forms of traces with declared columns.

A view is a function from a trace, or from a group (a problem with its traces), to rows. Its columns are the fields of a
pydantic model: the types determine the Arrow schema, and the descriptions are printed on the dataset's card.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Union

import pyarrow as pa
from pydantic import BaseModel, Field

from tracefactory.core.columns import ARROW, DERIVATION, MEASURED, VERDICT, Column
from tracefactory.core.registry import Registry, registry
from tracefactory.core.rows import Frozen, Problem, Thinking, Trace

Row = dict[str, Any]
Refuse = Callable[[Trace, "ViewError"], object]
"""Records that a view omits a trace, with the reason."""


class ViewError(ValueError):
    """A view cannot represent a trace. `reason` is a stable snake_case identifier, `detail` a sentence."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail

    def __reduce__(self) -> tuple[type[ViewError], tuple[str, str]]:
        return type(self), (self.reason, self.detail)


@dataclass(frozen=True)
class Group:
    """A problem with all of its published traces, sorted by id."""

    problem: Problem
    traces: Sequence[Trace]


class Tracked(Frozen):
    """The columns of every view, with which a row can be found in its run."""

    id: str = Field(description="The id of the trace, the same in all configurations and in the run that made it.")
    problem_id: str = Field(description="The id of the problem: a hash of question and gold answer.")
    style: str = Field(description="The style of the prompt that the trace was sampled with.")
    teacher: str = Field(description="The model that wrote the trace, by its name in the pipeline.")
    prompt_tokens: int = Field(description="Tokens of the prompt, as the teacher's server counted them.")
    completion_tokens: int = Field(
        description="Tokens of the completion, as the teacher's server counted them; of a pruned trace an estimate: "
        "that count times the share of the text that is left."
    )


_TRACKED = tuple(Tracked.model_fields)


class Message(Frozen):
    """One message: `role` is system, user or assistant."""

    role: str = Field(description="system, user or assistant.")
    content: str = Field(description="The text.")


def tracking(trace: Trace) -> Row:
    """Return the values of `Tracked` for a trace."""
    return {name: getattr(trace, name) for name in _TRACKED}


@dataclass(frozen=True)
class View:
    """A published form: a named, versioned row model and the function that makes the rows.

    `version` is increased when the rows of the same traces change. `summary` is one sentence for the dataset card. A
    trace that a `partial` view cannot represent is omitted only from this view; with any other view, it is omitted from
    the whole dataset. With `columns_too`, rows include the declared columns of stages, in `measures` and `fields`.
    `texts` are the columns that a student is shown, which are searched for control tokens; None is all of them but
    those of `Tracked`. `made_from` are columns of traces of which a row needs at least one: a pipeline in which no
    stage makes one of them is a mistake.
    """

    name: str
    version: str
    summary: str
    row: type[BaseModel]
    make: Callable[[Group, Refuse], Iterable[Row]]
    partial: bool = False
    columns_too: bool = False
    texts: tuple[str, ...] | None = None
    made_from: tuple[str, ...] = ()

    def schema(self, columns: Iterable[Column] = ()) -> pa.Schema:
        """Return the Arrow schema of the rows.

        Args:
            columns: the declared columns of the traces.
        """
        fields = _fields(self.row)
        added = [one for one in columns if self.columns_too and one.name not in (VERDICT.name, DERIVATION.name)]
        for name, measured in (("measures", True), ("fields", False)):
            chosen = {one.name: ARROW[one.type] for one in added if (one.type in MEASURED) is measured}
            if chosen:
                fields.append(pa.field(name, pa.struct(sorted(chosen.items(), key=lambda one: one[0]))))
        return pa.schema(fields)

    def rows(self, group: Group) -> Rows:
        """Return the rows of a group, and its traces without rows with the reasons."""
        refused: dict[str, ViewError] = {}
        made = list(self.make(group, lambda trace, error: refused.setdefault(trace.id, error)))
        return Rows(made, refused)


@dataclass(frozen=True)
class Rows:
    """The rows of a view for a group, and the errors of the traces that it cannot represent, by id."""

    rows: list[Row]
    refused: dict[str, ViewError] = field(default_factory=dict)


VIEWS: Registry[View] = registry("view")
"""Every view by name."""


def trace_view(
    *,
    name: str,
    version: str,
    summary: str,
    row: type[BaseModel],
    partial: bool = False,
    columns_too: bool = False,
    texts: tuple[str, ...] | None = None,
) -> Callable[[Callable[[Trace], Row]], View]:
    """Return a decorator that registers a function as a view.

    The function returns the row of a trace, or raises ViewError for a trace that the view cannot represent.

    Args:
        name, version, summary, row, partial, columns_too, texts: see `View`.
    """

    def register(function: Callable[[Trace], Row]) -> View:
        def make(group: Group, refuse: Refuse) -> Iterator[Row]:
            for trace in group.traces:
                try:
                    yield function(trace)
                except ViewError as error:
                    refuse(trace, error)

        return VIEWS.register(name)(View(name, version, summary, row, make, partial, columns_too, texts))

    return register


def group_view(
    *,
    name: str,
    version: str,
    summary: str,
    row: type[BaseModel],
    texts: tuple[str, ...] | None = None,
    made_from: tuple[str, ...] = (),
) -> Callable[[Callable[[Group, Refuse], Iterable[Row]]], View]:
    """Return a decorator that registers a function as a view.

    The function returns the rows of a group, and calls `refuse` for every trace without a row. The view is partial,
    because groups may have no rows.

    Args:
        name, version, summary, row, texts, made_from: see `View`.
    """

    def register(function: Callable[[Group, Refuse], Iterable[Row]]) -> View:
        view = View(name, version, summary, row, function, partial=True, texts=texts, made_from=made_from)
        return VIEWS.register(name)(view)

    return register


def described(view: View) -> list[tuple[str, str, str]]:
    """Return (name, type, description) of the columns of a view."""
    schema = view.schema()
    return [
        (name, str(schema.field(name).type), info.description or "") for name, info in view.row.model_fields.items()
    ]


def declared_values(trace: Trace) -> Row:
    """Return `measures` and `fields` of a trace and its problem, for a view with `columns_too`."""
    return {
        "measures": {**trace.problem.measures, **trace.measures},
        "fields": {**trace.problem.fields, **trace.fields},
    }


def require_trainable(trace: Trace) -> None:
    """Check that a trace is a complete answer that can be used for training.

    A student would learn to write unclosed, doubled or nested think tags, and chat templates split turns at
    `</think>` (https://github.com/huggingface/transformers). Other control tokens are the business of `publish`.

    Raises:
        ViewError: for a refusal, for reasoning that is not closed or an empty answer, for think tags in what an
            assistant wrote.
    """
    if trace.refusal is not None:
        raise ViewError("refused_sample", "the teacher refused")
    if trace.thinking is Thinking.OPEN:
        raise ViewError("thinking_open", "the reasoning was never closed")
    if not trace.answer_text.strip():
        raise ViewError("answer_empty", "there is no answer text after the reasoning")
    for number, turn in enumerate(trace.messages):
        for part, text in (("reasoning", turn.reasoning), ("text", turn.content)):
            if turn.role == "assistant" and ("<think>" in text or "</think>" in text):
                raise ViewError("think_tag_inside", f"the {part} of message {number} contains a think tag")


def require_plain(trace: Trace) -> None:
    """Check that a trace has no tool calls.

    Raises:
        ViewError: when it has tool calls or their results.
    """
    if any(turn.tool_calls or turn.role == "tool" for turn in trace.turns):
        raise ViewError("has_tool_calls", "the trace calls tools; the view tool_use has such traces")


def conversation(trace: Trace) -> list[dict[str, str]]:
    """Return the whole conversation as roles and texts, with the reasoning of every turn inline in think tags."""
    return [
        {
            "role": turn.role,
            "content": f"<think>\n{turn.reasoning}\n</think>\n\n{turn.content}" if turn.reasoning else turn.content,
        }
        for turn in trace.messages
    ]


_SCALARS: dict[Any, pa.DataType] = {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_()}


def _fields(model: type[BaseModel]) -> list[pa.Field]:
    hints = typing.get_type_hints(model)
    return [pa.field(name, _arrow(hints[name])) for name in model.model_fields]


def _arrow(annotation: Any) -> pa.DataType:
    """Return the Arrow type of a field: text, number, bool, model, or a list or option of them."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation in _SCALARS:
        return _SCALARS[annotation]
    if origin is typing.Literal or (isinstance(annotation, type) and issubclass(annotation, str)):
        return pa.string()
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return pa.struct(_fields(annotation))
    if origin in (Union, types.UnionType):
        (inner,) = (one for one in arguments if one is not type(None))
        return _arrow(inner)
    if origin in (list, tuple):
        return pa.list_(_arrow(arguments[0]))
    raise TypeError(f"a view cannot have columns of type {annotation}")
