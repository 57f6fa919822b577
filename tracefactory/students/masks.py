"""The loss mask of a rendered conversation, token by token, against what is meant.

`text.turns` looks at the text of a rendering. Its tokens can still be others than meant: a token lies across the edge
of what carries loss, a text spells a control token, or the marks `{% generation %}` of a template, by which trainers
find the assistant's messages, are around something else.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any
from unicodedata import normalize

import numpy as np

from tracefactory.students.render import Rendered, Renderer
from tracefactory.text.chat_templates import Message, RenderError
from tracefactory.text.turns import AssistantTurn, calls_of, parts

_MARKS = re.compile(r"{%-?\s*generation\s*-?%}")
_SHOWN = 40  # characters of a text in a message


def check_special(renderer: Renderer, texts: Sequence[str]) -> None:
    """Check that no text spells a control token of the student: it would be trained, or end a turn.

    Args:
        renderer: the student's renderer.
        texts: what users, tools and assistants wrote.

    Raises:
        RenderError: when one does.
    """
    for text in texts:
        if (found := renderer.control_token_in(text)) is not None:
            raise RenderError("special_token_inside", f"a text contains {found!r}, a control token of the student")


def check_ranges(turn: AssistantTurn, tokens: Rendered, content: str, details: Sequence[Mapping[str, Any]]) -> None:
    """Check that the ranges of the view `masked` leave exactly what they say without loss, but for white space.

    The script that makes labels trains on a token when its text begins outside of the ranges that pruning cut; white
    space at its start does not count.

    Args:
        turn: the rendering.
        tokens: its tokens.
        content: the text of the assistant's message, which the ranges refer to.
        details: the ranges.

    Raises:
        RenderError: when the template rewrites the message, or a token is partly in a range.
    """
    at = turn.text.rfind(content)
    if at < 0:
        raise RenderError("ranges_moved", "it changes the text that the character ranges refer to")
    low = max(at, turn.start)
    meant = np.zeros(len(turn.text), dtype=bool)
    meant[low : turn.end] = True
    cut = np.zeros(len(turn.text), dtype=bool)
    for one in details:
        if not one["train"]:
            cut[at + one["begin_offset"] : at + one["end_offset"] + 1] = True
    trained = np.zeros(len(turn.text), dtype=bool)
    for start, end in zip(tokens.starts + turn.start, tokens.ends + turn.start, strict=True):
        text = turn.text[start:end]
        if end > low and not cut[end - len(text.lstrip() or text)]:
            trained[start:end] = True
    differing = np.flatnonzero((meant & ~cut) != trained)
    wrong = next((int(one) for one in differing if not turn.text[one].isspace()), None)
    if wrong is not None:
        carries = "carries loss" if trained[wrong] else "carries no loss"
        near = turn.text[max(0, wrong - 10) : wrong + 10]
        raise RenderError("mask_not_exact", f"a token is partly in a range that was cut, so {near!r} {carries} in part")


def check_marks(
    renderer: Renderer, turn: AssistantTurn, messages: Sequence[Message], tools: Sequence[Any] | None = None
) -> None:
    """Check that the marks `{% generation %}` of a template, if it has any, are around the assistant's messages.

    TRL finds what `assistant_only_loss` supervises by them. They may include the header that begins a turn, which the
    student then learns to write too, and the line break after its end.

    Args:
        renderer: the student's renderer.
        turn: the rendering, in which the assistant's last turn was found.
        messages: the conversation.
        tools: the function schemas of the tools.

    Raises:
        RenderError: when they leave out a part of a message, or include another one.
    """
    if _MARKS.search(renderer.tokenizer.chat_template) is None:
        return
    encoded = renderer.tokenizer.apply_chat_template(
        [dict(one) for one in messages],
        tools=list(tools) if tools else None,
        return_dict=True,
        return_assistant_tokens_mask=True,
    )
    runs = list(_runs(renderer, encoded["input_ids"], encoded["assistant_masks"]))
    own = [one for one in messages if one["role"] == "assistant"]
    if len(runs) != len(own):
        raise RenderError("marks_differ", f"its generation marks are around {len(runs)} parts, not {len(own)} messages")
    prompt, supervised, last = (
        normalize("NFC", one) for one in (turn.text[: turn.start], turn.supervised, runs[-1].rstrip())
    )
    if not last.endswith(supervised) or not prompt.endswith(last.removesuffix(supervised)):
        raise _differ(last, supervised)
    _check_earlier(messages[:-1], iter(runs[:-1]), normalize("NFC", turn.text))


def _runs(renderer: Renderer, ids: Sequence[int], mask: Sequence[int]) -> Iterator[str]:
    """Yield the text of every run of marked tokens."""
    for marked, group in groupby(zip(ids, mask, strict=True), key=lambda one: one[1]):
        if marked:
            yield renderer.decode(np.array([token for token, _ in group]))


def _check_earlier(messages: Sequence[Message], runs: Iterator[str], text: str) -> None:
    """Check that the runs are the assistant's messages among `messages`, whole, and lie between the other ones.

    Args:
        messages: the conversation without its last message.
        runs: the texts of the runs of marked tokens.
        text: the rendering, in the normal form NFC.
    """
    at = 0
    for message in messages:
        content = normalize("NFC", parts(message)[1].strip())
        if message["role"] == "assistant":
            run = normalize("NFC", next(runs)).rstrip()
            start = text.find(run, at)
            if start < 0:
                raise _differ(run, content)
            _check_run(message, run)
            at = start + len(run)
        elif (found := text.find(content, at)) >= 0:
            at = found + len(content)
        elif content in text:
            raise RenderError("marks_differ", f"its generation marks are around {_short(content)} of another role, too")


def _check_run(message: Message, run: str) -> None:
    """Check that a run of marked tokens has what an assistant's message says, and something that ends it."""
    reasoning, answer = (part.strip() for part in parts(message))
    at = 0
    for part in filter(None, (reasoning, answer, *(name for name, _ in calls_of(message)))):
        found = run.find(normalize("NFC", part), at)
        if found < 0:
            raise _differ(run, part)
        at = found + len(normalize("NFC", part))
    if not run[at:].strip():
        raise _differ(run, "the end")


def _differ(run: str, meant: str) -> RenderError:
    return RenderError(
        "marks_differ",
        f"its generation marks are around {_short(run)}, where {_short(meant)} of an assistant's message is meant",
    )


def _short(text: str) -> str:
    return repr(text if len(text) <= _SHOWN else f"{text[: _SHOWN // 2]}...{text[-_SHOWN // 2 :]}")
