"""Reading the reasoning out of a completion: from its own field, from inline tags, or from a tag left in the prompt."""

from __future__ import annotations

import re

from tracefactory.core.rows import Thinking

# Delimiters in public use: DeepSeek-R1, Qwen and most others `<think>`; `<thinking>`, `<reasoning>`, `<thought>` by
# prompt; Sky-T1 and OpenThinker `<|begin_of_thought|>`. Matched whatever their case. All begin with one character that
# stands first in the pattern: the search skips to it.
_NAMES = "think|thinking|reasoning|thought"
_TAG = re.compile(
    rf"<(?:(?P<open>(?:{_NAMES})>|\|begin_of_thought\|>)|(?P<close>/(?:{_NAMES})>|\|end_of_thought\|>))", re.IGNORECASE
)


def opens_thinking(text: str) -> bool:
    """Whether `text` (a prompt's prefill, say) leaves a thinking tag open, so that what follows starts as reasoning."""
    depth = 0
    for tag in _TAG.finditer(text):
        depth = depth + 1 if tag["open"] else max(0, depth - 1)
    return depth > 0


def split_reasoning(content: str, reasoning_field: str | None, *, opened_in_prompt: bool) -> tuple[str, str, Thinking]:
    """Return the reasoning, the answer text, and how the reasoning was delimited.

    A server's separate field wins: then `content` is all answer (less a copy of the field in tags), and blank content
    means that the thinking never ended. Otherwise the text inside of tags is reasoning and the text outside is answer;
    several blocks are joined by blank lines; a block that never closes holds all that follows. A tag inside of a block
    only counts for where the block ends, and if the counts do not match, the last closing tag ends it.
    `opened_in_prompt` says that the opening tag was in the prompt, so that `content` starts inside the thinking; a
    closing tag with no opening one before it (that was in the chat template) is read the same way. Besides the tags and
    the white space at the edges of pieces, no character is lost.
    """
    if reasoning_field is not None and reasoning_field.strip():
        field = reasoning_field.strip()
        inline, answer, _ = _split_inline(content, opened_in_prompt=False)
        answer = answer if inline == field else content.strip()
        return field, answer, Thinking.CLOSED if answer else Thinking.OPEN
    return _split_inline(content, opened_in_prompt=opened_in_prompt)


def _split_inline(content: str, *, opened_in_prompt: bool) -> tuple[str, str, Thinking]:
    tags = list(_TAG.finditer(content))
    closes_first = bool(tags) and tags[0]["close"] is not None
    # Some servers repeat the opening tag of the prompt in the completion; it is the same block, not one inside of it.
    repeats = bool(tags) and not closes_first and not content[: tags[0].start()].strip()
    depth = 1 if closes_first or (opened_in_prompt and not repeats) else 0
    if not tags and not depth:
        return "", content.strip(), Thinking.NONE
    inside: list[str] = []
    outside: list[str] = []
    position = 0
    for number, tag in enumerate(tags, start=1):
        (inside if depth else outside).append(content[position : tag.start()])
        if tag["open"]:
            depth += 1
        else:
            depth = 0 if number == len(tags) else max(0, depth - 1)
        position = tag.end()
    (inside if depth else outside).append(content[position:])
    return _joined(inside), _joined(outside), Thinking.OPEN if depth else Thinking.CLOSED


def _joined(pieces: list[str]) -> str:
    return "\n\n".join(piece.strip() for piece in pieces if piece.strip())
