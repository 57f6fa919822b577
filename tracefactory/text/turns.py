"""The one check of a rendered conversation: is the assistant's last turn in it whole, once, and delimited?

Plain templates ignore `reasoning_content`, some remove everything before `</think>` even in the turn to train on, some
write a second pair of think tags around the first, some no end of the turn. A student that is trained with them learns
something else than what was meant, and there is no error.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tracefactory.text.chat_templates import ChatTemplate, Message, RenderError

_OPEN, _CLOSE = "<think>", "</think>"
_TAG = re.compile(f"{_OPEN}|{_CLOSE}")


@dataclass(frozen=True)
class AssistantTurn:
    """The last turn of a conversation in its rendering.

    `text` is the rendering, `start` the end of the prompt for generation in it, and `end` the end of the turn: both
    delimit what is supervised. `body` is the start of the reasoning, or of the answer where there is no reasoning.
    """

    text: str
    start: int
    end: int
    body: int

    @property
    def supervised(self) -> str:
        """The text that is supervised."""
        return self.text[self.start : self.end]


def parts(message: Message) -> tuple[str, str]:
    """Return reasoning and answer of a message; the reasoning is in its own field or in think tags."""
    content = str(message.get("content") or "")
    if message.get("reasoning_content"):
        return str(message["reasoning_content"]), content
    before, closed, after = content.partition(_CLOSE)
    if closed and before.lstrip().startswith(_OPEN):
        return before.lstrip().removeprefix(_OPEN), after
    return "", content


def calls_of(message: Message) -> list[tuple[str, Mapping[str, Any]]]:
    """Return name and arguments of the tool calls of a message; arguments may be given as JSON text."""
    found = []
    for call in message.get("tool_calls") or ():
        given = call["function"].get("arguments") or {}
        found.append((str(call["function"]["name"]), json.loads(given) if isinstance(given, str) else given))
    return found


def rendered_turn(
    template: ChatTemplate, before: Sequence[Message], last: Message, tools: Sequence[Any] | None = None
) -> AssistantTurn:
    """Render a conversation for training and find the assistant's last turn.

    White space around reasoning and answer may be changed by the template, and white space after the end of the turn is
    not part of it.

    Args:
        template: the student's chat template.
        before: the messages before the last one.
        last: the assistant's message.
        tools: the function schemas of the tools.

    Raises:
        RenderError: when the template fails, or the turn lacks something, has something twice, or has no end.
    """
    reasoning, answer = (part.strip() for part in parts(last))
    if _TAG.search(reasoning) or _TAG.search(answer):
        raise RenderError("think_tag_inside", "the reasoning or the answer contains a think tag")
    prompt = template.text(before, generate=True, tools=tools)
    text = template.text([*before, last], generate=False, tools=tools)
    start = len(prompt) if text.startswith(prompt) else _differs(prompt, text)
    reasoning_at = text.find(reasoning, start)
    if reasoning_at < 0:
        raise RenderError("reasoning_not_rendered", "it drops or rewrites the reasoning")
    answer_at = text.find(answer, reasoning_at + len(reasoning))
    if answer_at < 0:
        raise RenderError("answer_not_rendered", "it drops or rewrites the answer")
    if start < len(prompt):
        raise _other_beginning(template, reasoning)
    stop = answer_at + len(answer)
    head = template.generation + text[start : reasoning_at if reasoning else answer_at]
    _check_tags(head, text[reasoning_at + len(reasoning) : answer_at] if reasoning else None, text[stop:])
    _check_end(text[stop:])
    return AssistantTurn(text, start, len(text.rstrip()), reasoning_at if reasoning else answer_at)


def _differs(one: str, other: str) -> int:
    """Return the first position at which two texts differ."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((at for at, (left, right) in pairs if left != right), min(len(one), len(other)))


def _other_beginning(template: ChatTemplate, reasoning: str) -> RenderError:
    """Return the error of a turn that begins otherwise than the prompt for generation does."""
    detail = "the text for training does not begin with the prompt for generation"
    tags = _TAG.findall(template.generation)
    if tags == [_OPEN] and not reasoning:
        return RenderError("no_reasoning", f"{detail}, which opens the thinking: a trace needs reasoning")
    if tags == [_OPEN, _CLOSE] and reasoning:
        return RenderError("thinking_closed_in_prompt", f"{detail}, which closes the thinking")
    return RenderError("prompt_not_a_prefix", detail)


def _check_tags(head: str, middle: str | None, tail: str) -> None:
    """Check that one pair of delimiters is around the reasoning.

    Args:
        head: the beginning of the turn, with the prompt for generation, up to the reasoning (or the answer).
        middle: the text between reasoning and answer; None where there is no reasoning.
        tail: the text after the answer.

    Raises:
        RenderError: when there is another number of them.
    """
    before, between, after = (_TAG.findall(text) for text in (head, middle or "", tail))
    if middle is None:
        if before == [_OPEN]:
            raise RenderError("no_reasoning", "the prompt for generation opens the thinking: a trace needs reasoning")
        whole = not after and before in ([], [_OPEN, _CLOSE])
    else:
        whole = not after and (before, between) in (([_OPEN], [_CLOSE]), ([], []))
        if whole and not before and not middle.strip():
            raise RenderError("not_delimited", "nothing separates the reasoning from the answer")
    if not whole:
        found = " ".join([*before, *([] if middle is None else ["(reasoning)"]), *between, "(answer)", *after])
        raise RenderError("think_tags_doubled", f"it writes {found}: not one pair of think tags around the reasoning")


def _check_end(tail: str) -> None:
    """Check that one marker ends the turn.

    Raises:
        RenderError: when there is none, or another one after it.
    """
    ends = tail.split()
    if not ends:
        raise RenderError("no_end_of_turn", "nothing ends the turn: the student would learn to go on")
    if len(ends) > 1:
        raise RenderError("end_doubled", f"it ends the turn {len(ends)} times: {tail.strip()!r}")
