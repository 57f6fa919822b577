"""Split a completion into its thinking and its answer, by the tags of every model family."""

from __future__ import annotations

import re
from dataclasses import dataclass

_THINK = re.compile(
    r"(?P<open><(?:think|thinking|thought|reasoning|seed:think|Begin_of_Draft)>|<\|begin_of_thought\|>|◁think▷|\[THINK\]"
    r"|<\|channel\|>analysis<\|message\|>)"
    r"|</(?:think|thinking|thought|reasoning|seed:think)>|<End_of_Draft>|<\|end_of_thought\|>|◁/think▷|\[/THINK\]"
    r"|(?:<\|start\|>assistant)?<\|channel\|>final<\|message\|>",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Completion:
    """A completion split into reasoning and answer; `open` means that the thinking was not closed."""

    reasoning: str
    answer: str
    open: bool


def split_thinking(text: str) -> Completion:
    """Split a completion at the last end of thinking."""
    first_open = last_open = last_close = None
    for match in _THINK.finditer(text):
        if match["open"]:
            first_open, last_open = first_open or match, match
        else:
            last_close = match
    if last_close is not None and (last_open is None or last_open.start() < last_close.start()):
        start = first_open.end() if first_open else 0
        return Completion(text[start : last_close.start()], text[last_close.end() :], open=False)
    if last_open is not None:
        return Completion(text[last_open.end() :], text[: last_open.start()] if last_close else "", open=True)
    return Completion("", text, open=False)
