"""Check the rows of views with the chat template of the student that will be trained on them.

A view's columns say how a trainer renders it: `messages` and `masked_messages` are conversations whose last message is
the assistant's, `prompt` with `completion`, and `chosen` with `rejected` after `prompt` or `messages`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tracefactory.core.rows import Outcome, Problem, Thinking, Tool, ToolCall, Trace, Turn, Verdict
from tracefactory.publish.views import Group, Row, View
from tracefactory.students.masks import check_marks, check_ranges, check_special
from tracefactory.students.render import Renderer
from tracefactory.text.chat_templates import Message, RenderError
from tracefactory.text.turns import AssistantTurn, calls_of, parts, rendered_turn

NOT_RENDERED = "not rendered"
"""Said of views whose rows no chat template renders for training, such as `raw`."""
_QUESTION = "A box holds 84 apples. Half of them are sold. How many are left?"
_REASONING = "Half of 84 is 42.\n\nSo 84 - 42 = 42 are left."
_CODE = 'print("left:", 84 - 84 // 2)'
_TOOL = Tool(
    name="python",
    description="Runs a program.",
    parameters='{"type": "object", "properties": {"code": {"type": "string"}}}',
)
_CALLED = (
    Turn(
        role="assistant",
        reasoning="A program is safer.",
        tool_calls=(ToolCall(id="call00001", name="python", arguments=json.dumps({"code": _CODE})),),
    ),
    Turn(role="tool", content="left: 42", name="python", call_id="call00001"),
)


@dataclass(frozen=True)
class Training:
    """One conversation of a row: what is before the assistant's last message, and that message.

    `what` is completion, chosen or rejected. With `earlier`, trainers supervise the assistant's earlier messages too.
    `details` are the character ranges of the view `masked`, which refer to the message; a template must not change it.
    """

    what: str
    before: Sequence[Message]
    last: Message
    tools: Sequence[Any] | None = None
    earlier: bool = False
    details: Sequence[Mapping[str, Any]] = ()


def trainings(row: Row) -> Iterator[Training]:
    """Yield the conversations of a row of any view; none for a view that no chat template renders.

    Messages are as trainers are to give them to a template: without the keys that a message does not have, and with the
    arguments of tool calls as mappings, which most templates write as JSON.
    """
    before = row.get("prompt") or row.get("messages") or row.get("masked_messages")
    if not isinstance(before, Sequence) or isinstance(before, str):
        return
    if "chosen" in row and "rejected" in row:
        for what in ("chosen", "rejected"):
            one = row[what]
            yield Training(what, before, one if isinstance(one, Mapping) else one[-1])
    elif "completion" in row:
        yield Training("completion", before, row["completion"][-1])
    elif before[-1]["role"] == "assistant":
        tools = json.loads(row["tools"]) if isinstance(row.get("tools"), str) else None
        plain = [_given(message) for message in before]
        details = before[-1].get("train_detail") or ()
        yield Training("completion", plain[:-1], plain[-1], tools, earlier=True, details=details)


def _given(message: Message) -> Message:
    """Return a message as a template is given it."""
    given = {key: value for key, value in message.items() if value is not None and key != "train_detail"}
    if "tool_calls" in given:
        calls = zip(given["tool_calls"], calls_of(message), strict=True)
        given["tool_calls"] = [
            {**call, "function": {**call["function"], "arguments": dict(arguments)}} for call, (_, arguments) in calls
        ]
    return given


def check_row(row: Row, renderer: Renderer, *, spelled: bool = False) -> None:
    """Check what a student is trained on: reasoning, answer and tool calls, once, delimited, ended, token by token.

    Args:
        row: a row of a view.
        renderer: the student's renderer.
        spelled: whether a text may spell a control token.

    Raises:
        RenderError: when it is something else.
    """
    turns = []
    for one in trainings(row):
        turn = rendered_turn(renderer.template, one.before, one.last, one.tools)
        check_training(one, turn, renderer, spelled=spelled)
        turns.append(turn.text)
    if len(turns) == 2 and turns[0] == turns[1]:
        raise RenderError("pair_alike", "chosen and rejected are the same text")


def check_training(one: Training, turn: AssistantTurn, renderer: Renderer, *, spelled: bool = False) -> None:
    """Check the rest of a conversation, whose last turn is whole, and the tokens that carry loss.

    Args:
        one: the conversation.
        turn: its rendering.
        renderer: the student's renderer.
        spelled: whether a text may spell a control token.

    Raises:
        RenderError: when the rendering drops something that carries loss, or the tokens that do are others than meant.
    """
    messages = (*one.before, one.last)
    _check_messages(messages if one.earlier else (one.last,), turn.text)
    if not spelled:
        check_special(renderer, [text for message in messages for text in _texts(message)])
    tokens = renderer.tokens_of(turn)
    renderer.check_mask(tokens)
    if one.details:
        check_ranges(turn, tokens, str(one.last["content"]), one.details)
    elif one.earlier:
        check_marks(renderer, turn, messages, one.tools)


def _check_messages(messages: Sequence[Message], text: str) -> None:
    """Check that the assistant's messages say something, and that a rendering has all of them, in their order.

    Raises:
        RenderError: when it drops the reasoning of an earlier turn, a tool call, or a message is empty.
    """
    at = 0
    for message in messages:
        reasoning, answer = (part.strip() for part in parts(message))
        calls = calls_of(message)
        if message["role"] != "assistant":
            at = max(at, text.find(answer, at) + len(answer)) if answer in text else at
            continue
        if not (reasoning or answer or calls):
            raise RenderError("empty_turn", "a message of the assistant is empty, so the student learns to say nothing")
        start = at
        for part, reason in ((reasoning, "earlier_reasoning_not_rendered"), (answer, "earlier_answer_not_rendered")):
            found = text.find(part, at)
            if found < 0:
                what = "reasoning" if part == reasoning else "text"
                raise RenderError(reason, f"it drops the {what} of an earlier turn")
            at = found + len(part)
        for value in (one for name, arguments in calls for one in (name, *_leaves(arguments))):
            # Templates write the arguments of a call in an order of their own.
            ends = [text.find(one, start) + len(one) for one in _spelled(value) if one in text[start:]]
            if not ends:
                raise RenderError("tool_call_not_rendered", f"it drops {value!r} of a tool call, or rewrites it")
            at = max(at, min(ends))


def _leaves(value: Any) -> Iterator[Any]:
    """Yield the keys and plain values of the arguments of a call."""
    if isinstance(value, Mapping):
        for key, one in value.items():
            yield key
            yield from _leaves(one)
    elif isinstance(value, (list, tuple)):
        for one in value:
            yield from _leaves(one)
    else:
        yield value


def _spelled(value: Any) -> tuple[str, ...]:
    """Return how a template may write a plain value: as it is, or in JSON, once."""
    if not isinstance(value, str):
        return json.dumps(value), str(value)
    return value, json.dumps(value, ensure_ascii=False)[1:-1], json.dumps(value)[1:-1]


def _texts(message: Message) -> Iterator[str]:
    """Yield everything that somebody wrote in a message."""
    yield from parts(message)
    for name, arguments in calls_of(message):
        yield from (str(one) for one in (name, *_leaves(arguments)))


def view_fault(view: View, renderer: Renderer) -> RenderError | str | None:
    """Return what a template does to a view's rows, by rows of an example; None when they are as they were meant.

    Args:
        view: the view.
        renderer: the student's renderer.

    Returns:
        The error, `NOT_RENDERED`, or None.
    """
    rendered = 0
    for row in view.rows(_example(calls="tools" in view.row.model_fields)).rows:
        try:
            check_row(row, renderer)
        except RenderError as error:
            return error
        rendered += sum(1 for _ in trainings(row))
    return None if rendered else NOT_RENDERED


def _example(*, calls: bool) -> Group:
    """Return a problem with a right and a wrong trace, which call a tool first if the view has tools."""
    problem = Problem.make(question=_QUESTION, answer="42")
    turns: tuple[Turn, ...] = ()
    if calls:
        problem = problem.model_copy(update={"tools": (_TOOL,)})
        turns = _CALLED
    traces = []
    for number, (outcome, answer) in enumerate(((Outcome.CORRECT, "42"), (Outcome.INCORRECT, "44"))):
        traces.append(
            Trace(
                id=f"{number}" * 16,
                problem=problem,
                turns=turns,
                reasoning=_REASONING.replace("= 42", f"= {answer}"),
                answer_text=f"There are \\boxed{{{answer}}} apples left.",
                thinking=Thinking.CLOSED,
                verdict=Verdict(outcome=outcome, method="example", verifier="math", version="1"),
            )
        )
    return Group(problem, traces)
