"""Check the rows of views with the chat template of the student that will be trained on them.

A view's columns say how a trainer renders it: `messages` and `masked_messages` are conversations whose last message is
the assistant's, `prompt` with `completion`, and `chosen` with `rejected` after `prompt` or `messages`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tracefactory.core.rows import Outcome, Problem, Thinking, Trace, Verdict
from tracefactory.publish.views import Group, Row, View
from tracefactory.text.chat_templates import ChatTemplate, Message, RenderError
from tracefactory.text.turns import AssistantTurn, parts, rendered_turn

NOT_RENDERED = "not rendered"
"""Said of views whose rows no chat template renders for training, such as `raw`."""
_QUESTION = "A box holds 84 apples. Half of them are sold. How many are left?"
_REASONING = "Half of 84 is 42.\n\nSo 84 - 42 = 42 are left."


@dataclass(frozen=True)
class Training:
    """One conversation of a row: what stands before the assistant's last message, and that message.

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
    """Yield the conversations of a row of any view; none for a view that no chat template renders."""
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
        plain = [{key: value for key, value in message.items() if key != "train_detail"} for message in before]
        details = before[-1].get("train_detail") or ()
        yield Training("completion", plain[:-1], plain[-1], tools, earlier=True, details=details)


def check_row(row: Row, template: ChatTemplate) -> None:
    """Check that a template renders the reasoning and the answer of a row, once, delimited, and with an end.

    Args:
        row: a row of a view.
        template: the student's chat template.

    Raises:
        RenderError: when it does not.
    """
    turns = []
    for one in trainings(row):
        turn = rendered_turn(template, one.before, one.last, one.tools)
        check_training(one, turn)
        turns.append(turn.text)
    if len(turns) == 2 and turns[0] == turns[1]:
        raise RenderError("pair_alike", "chosen and rejected are the same text")


def check_training(one: Training, turn: AssistantTurn) -> None:
    """Check what a rendering does to the rest of a conversation, whose last turn is whole.

    Raises:
        RenderError: when it drops supervised reasoning of an earlier turn, or moves characters that ranges refer to.
    """
    if one.details and str(one.last["content"]).strip() not in turn.text:
        raise RenderError("ranges_moved", "it changes the text that the character ranges refer to")
    at = 0
    for message in one.before if one.earlier else ():
        reasoning = parts(message)[0].strip() if message["role"] == "assistant" else ""
        at = turn.text.find(reasoning, at) if reasoning else at
        if at < 0:
            raise RenderError("earlier_reasoning_not_rendered", "it drops the reasoning of an earlier turn")


def view_fault(view: View, template: ChatTemplate) -> RenderError | str | None:
    """Return what a template does to a view's rows, by rows of an example; None when they are as they were meant.

    Args:
        view: the view.
        template: the student's chat template.

    Returns:
        The error, `NOT_RENDERED`, or None.
    """
    rendered = 0
    for row in view.rows(_example()).rows:
        try:
            check_row(row, template)
        except RenderError as error:
            return error
        rendered += sum(1 for _ in trainings(row))
    return None if rendered else NOT_RENDERED


def _example() -> Group:
    """Return a problem with a right and a wrong trace."""
    problem = Problem.make(question=_QUESTION, answer="42")
    traces = []
    for number, (outcome, answer) in enumerate(((Outcome.CORRECT, "42"), (Outcome.INCORRECT, "44"))):
        traces.append(
            Trace(
                id=f"{number}" * 16,
                problem=problem,
                reasoning=_REASONING.replace("= 42", f"= {answer}"),
                answer_text=f"There are \\boxed{{{answer}}} apples left.",
                thinking=Thinking.CLOSED,
                verdict=Verdict(outcome=outcome, method="example", verifier="math", version="1"),
            )
        )
    return Group(problem, traces)
