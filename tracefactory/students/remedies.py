"""What to change when a student's chat template loses part of a trace: only what was tried and renders."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from tracefactory.text.chat_templates import ChatTemplate, RenderError
from tracefactory.text.turns import rendered_turn

Placement = Literal["inline", "field"]
_USER = {"role": "user", "content": "How many are left?"}
_BODIES: dict[Placement, dict[str, str]] = {
    "inline": {"role": "assistant", "content": "<think>\nFirst, halve them.\n</think>\n\nThere are 45."},
    "field": {"role": "assistant", "content": "There are 45.", "reasoning_content": "First, halve them."},
}
_REFUSED = "name the student at `student:` of the publish stage, which then leaves such rows out"
_OF_ROWS = {
    "empty_turn": _REFUSED,
    "special_token_inside": _REFUSED,
    "mask_not_exact": _REFUSED,
    "ranges_moved": "train with another view, or set `chat_template:` to one that keeps the message as it is",
    "marks_differ": "take `{% generation %}` out of the template, or put it around each whole message of the assistant",
    "tool_call_not_rendered": "set `chat_template:` to one that knows tools, or train with LLaMA-Factory, which has "
    "templates of its own",
}
"""Reasons for which no other form of the reasoning and no other template that begins alike is a remedy."""


def remedy(tokenizer: Any, placement: Placement, reason: str) -> str:
    """Return what to change, as a sentence.

    The other form of the reasoning is tried, then every template that the package trl ships (if it is installed) and
    that begins the assistant's turn as the student's template does.

    Args:
        tokenizer: the student's tokenizer.
        placement: the form of the reasoning that failed.
        reason: the reason of the failure.
    """
    if reason in _OF_ROWS:
        return _OF_ROWS[reason]
    template = ChatTemplate.of_tokenizer(tokenizer)
    other: Placement = "field" if placement == "inline" else "inline"
    if _renders(template, other):
        form = 'as "<think>" text inside the message' if other == "inline" else "as the message's reasoning_content"
        return f"use `reasoning: {other}`, which trains the student on the reasoning {form}"
    for file in _shipped():
        changed = copy.copy(tokenizer)
        changed.chat_template = file.read_text(encoding="utf-8")
        candidate = ChatTemplate.of_tokenizer(changed)
        if _begins(candidate) == _begins(template):
            for form in (placement, other):
                if _renders(candidate, form):
                    with_form = "" if form == placement else f" with `reasoning: {form}`"
                    return (
                        f"set `chat_template:` to {file.name}{with_form}, from {file.parent.name}/ of the package trl"
                    )
    if reason == "end_doubled":
        return "set `chat_template:` to a copy of the template that ends the turn once, without `eos_token` after it"
    if reason == "thinking_closed_in_prompt":
        return (
            "set `chat_template:` to the template of the thinking mode, whose prompt for generation opens the thinking"
        )
    return "set `chat_template:` to one for training, which writes the reasoning, the answer and one end of the turn"


def _renders(template: ChatTemplate, placement: Placement) -> bool:
    try:
        rendered_turn(template, [_USER], _BODIES[placement])
    except RenderError:
        return False
    return True


def _begins(template: ChatTemplate) -> str | None:
    try:
        return template.text([_USER], generate=True)
    except RenderError:
        return None


def _shipped() -> Iterator[Path]:
    """Yield the templates for training that the package trl ships; it is not imported."""
    found = find_spec("trl")
    if found is not None and found.origin is not None:
        yield from sorted((Path(found.origin).parent / "chat_templates").glob("*_training.jinja"))
