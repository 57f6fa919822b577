"""Split reasoning and answer of a completion: from a separate field, inline tags, or a tag opened in the prompt."""

from __future__ import annotations

import re

from tracefactory.core.rows import Thinking

# Delimiters in public use: `<think>` in DeepSeek-R1, Qwen and most others; `<thinking>`, `<reasoning>`, `<thought>` by
# prompt; `<|begin_of_thought|>` in Sky-T1 and OpenThinker. Case is ignored. The pattern starts with a literal
# character, so the search skips to its occurrences.
_NAMES = "think|thinking|reasoning|thought"
_TAG = re.compile(
    rf"<(?:(?P<open>(?:{_NAMES})>|\|begin_of_thought\|>)|(?P<close>/(?:{_NAMES})>|\|end_of_thought\|>))", re.IGNORECASE
)


def opens_thinking(text: str) -> bool:
    """Return whether `text`, such as a prefill, ends inside an open thinking tag."""
    depth = 0
    for tag in _TAG.finditer(text):
        depth = depth + 1 if tag["open"] else max(0, depth - 1)
    return depth > 0


def split_reasoning(content: str, reasoning_field: str | None, *, opened_in_prompt: bool) -> tuple[str, str, Thinking]:
    """Split a completion into reasoning and answer.

    A server's separate field has priority: then `content` is the answer (without a copy of the field in tags), and
    blank content means that the thinking was not closed. Otherwise text inside tags is reasoning and text outside is
    answer; several blocks are joined by blank lines, and an unclosed block extends to the end. Nested tags count only
    for finding the end of the outer block; if they are unbalanced, the last closing tag ends it. Only the tags and the
    white space around the pieces are removed.

    Args:
        content: the text of the completion.
        reasoning_field: the server's separate field (`reasoning_content`), None when there is none.
        opened_in_prompt: whether the opening tag was in the prompt, so that `content` starts inside the thinking. A
            closing tag without an opening one, which was in the chat template, has the same effect.

    Returns:
        The reasoning, the answer text, and how the reasoning was delimited.
    """
    if reasoning_field is not None and reasoning_field.strip():
        field = reasoning_field.strip()
        inline, answer, _ = _split_inline(content, opened_in_prompt=False)
        answer = answer if inline == field else content.strip()
        return field, answer, Thinking.CLOSED if answer else Thinking.OPEN
    return _split_inline(content, opened_in_prompt=opened_in_prompt)


def has_words(prefill: str) -> bool:
    """Return whether a prefill has text of its own, apart from thinking tags and white space."""
    return bool(_TAG.sub("", prefill).strip())


def with_prefill(content: str, reasoning_field: str | None, prefill: str) -> tuple[str, str | None]:
    """Return a completion with the words of the prefill that it goes on with, which servers do not repeat.

    Without them, a trace would begin in the middle of a sentence. A prefill of tags alone has no words, and changes
    nothing; neither does any prefill change an empty completion.

    Args:
        content: the text of the completion.
        reasoning_field: the server's separate field (`reasoning_content`), None when there is none.
        prefill: the beginning of the assistant's turn that was in the prompt; "" for none.

    Returns:
        Content and separate field, to be split by `split_reasoning`.
    """
    field = reasoning_field or ""
    if not has_words(prefill) or not (content or field).strip():
        return content, reasoning_field
    *_, last = [None, *_TAG.finditer(prefill)]
    if not opens_thinking(prefill) or last is None:
        return prefill + content, reasoning_field
    words = prefill[last.end() :].lstrip()
    if field.strip():
        return content, field if field.lstrip().startswith(words.rstrip()) else words + field
    first = _TAG.match(content.lstrip())  # some servers repeat the tag that opened the thinking
    return prefill + (content.lstrip()[first.end() :] if first and first["open"] else content), reasoning_field


def _split_inline(content: str, *, opened_in_prompt: bool) -> tuple[str, str, Thinking]:
    tags = list(_TAG.finditer(content))
    closes_first = bool(tags) and tags[0]["close"] is not None
    # Some servers repeat the opening tag of the prompt in the completion; it is the same block, not a nested one.
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
    return _join_blocks(inside), _join_blocks(outside), Thinking.OPEN if depth else Thinking.CLOSED


def _join_blocks(pieces: list[str]) -> str:
    return "\n\n".join(piece.strip() for piece in pieces if piece.strip())
