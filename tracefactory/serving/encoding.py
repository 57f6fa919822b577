"""Tokens of a rendered conversation in which the texts of messages are text, whatever they spell.

A tokenizer that is called on a rendering makes the real control token of every `<|im_end|>` in it, also of one that
somebody wrote into a question. Here only those are control tokens that the chat template wrote.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from tracefactory.text.chat_templates import ChatTemplate, Message, RenderError
from tracefactory.text.control_tokens import THINK_TAGS, Marks
from tracefactory.text.turns import parts

Ranges = Sequence[tuple[int, int]]
_THINK = re.compile("</?think>")
_COMMON = Marks()


def control_tokens_of(tokenizer: Any, *, think: bool = False) -> Mapping[int, str]:
    """Return the control tokens of a tokenizer by id: those that it calls special, and marks of chat templates.

    Args:
        tokenizer: the tokenizer.
        think: whether think tags are among them.
    """
    special = {*tokenizer.all_special_ids}
    return {
        token: str(one)
        for token, one in tokenizer.added_tokens_decoder.items()
        if (think if str(one) in THINK_TAGS else one.special or token in special or _COMMON.find(str(one)) is not None)
    }


def encode(
    tokenizer: Any, whole: str, plain: Ranges, *, think: bool = False
) -> tuple[list[int], list[tuple[int, int]]]:
    """Return the token ids of a text, and the [start, end) characters of each.

    Args:
        tokenizer: a fast tokenizer.
        whole: the text.
        plain: the [start, end) characters in which there are no control tokens, whatever they spell.
        think: whether think tags are control tokens.
    """
    encoded = tokenizer(whole, add_special_tokens=False, return_offsets_mapping=True)
    ids, offsets = encoded["input_ids"], encoded["offset_mapping"]
    if not plain:
        return ids, offsets
    control = control_tokens_of(tokenizer, think=think)
    marks = [(token, *span) for token, span in zip(ids, offsets, strict=True) if token in control]
    written = [one for one in marks if not any(start < one[2] and one[1] < end for start, end in plain)]
    if len(written) == len(marks):
        return ids, offsets
    bare = _without_control_tokens(tokenizer, think)
    ids, offsets, done = [], [], 0
    for token, start, end in [*written, (None, len(whole), len(whole))]:
        piece = bare.encode(whole[done:start], add_special_tokens=False)
        ids += [*piece.ids, *([] if token is None else [token])]
        offsets += [(done + first, done + stop) for first, stop in piece.offsets]
        offsets += [] if token is None else [(start, end)]
        done = end
    return ids, offsets


def count(tokenizer: Any, text: str) -> int:
    """Return the number of tokens of a text in which think tags alone are control tokens."""
    edges = [0, *(edge for tag in _THINK.finditer(text) for edge in tag.span()), len(text)]
    return len(encode(tokenizer, text, list(zip(edges[::2], edges[1::2], strict=True)))[0])


def ranges_of_texts(template: ChatTemplate, messages: Sequence[Message], *, generate: bool) -> list[tuple[int, int]]:
    """Return where a rendering has the texts of its messages: reasoning and answer of assistants, content of others.

    The template is rendered again with another text in place of each, so that a text is not mistaken for what the
    template itself writes.

    Args:
        template: the chat template.
        messages: the messages.
        generate: whether the beginning of the assistant's turn follows.

    Raises:
        RenderError: when the template fails, or rewrites a text.
    """
    whole = template.text(messages, generate=generate)
    outline, texts = _outlined(messages)
    skeleton = template.text(outline, generate=generate)
    found, at, done = [], 0, 0
    for number, text in enumerate(texts):
        place = skeleton.find(_placeholder(number), done)
        if place < 0:
            continue  # the template drops it, as many drop earlier reasoning
        start = at + place - done
        if whole[at:start] != skeleton[done:place] or not whole.startswith(text, start):
            raise _rewritten()
        at, done = start + len(text), place + len(_placeholder(number))
        found.append((start, at))
    if whole[at:] != skeleton[done:]:
        raise _rewritten()
    return found


def _rewritten() -> RenderError:
    return RenderError("special_token_inside", "a text contains a control token, and the template rewrites the text")


def _outlined(messages: Sequence[Message]) -> tuple[list[dict[str, Any]], list[str]]:
    """Return the messages with a placeholder for each of their texts, and these texts without white space around."""
    texts: list[str] = []

    def held(text: str) -> str:
        bare = text.strip()
        if not bare:
            return text
        texts.append(bare)
        return text.replace(bare, _placeholder(len(texts) - 1), 1)

    outline = []
    for message in messages:
        content = str(message["content"])
        one = dict(message)
        reasoning, answer = parts(message) if message["role"] == "assistant" else ("", content)
        if message.get("reasoning_content"):
            one |= {"reasoning_content": held(reasoning), "content": held(answer)}
        else:
            head = content[: len(content) - len(answer)]
            one["content"] = (head.replace(reasoning, held(reasoning), 1) if reasoning else head) + held(answer)
        outline.append(one)
    return outline, texts


def _placeholder(number: int) -> str:
    return f"text number {number} of a message"


@lru_cache(maxsize=4)
def _without_control_tokens(tokenizer: Any, think: bool) -> Any:
    """Return a tokenizer that has no control tokens."""
    from tokenizers import Tokenizer

    written = json.loads(tokenizer.backend_tokenizer.to_str())
    control = control_tokens_of(tokenizer, think=think)
    left = [one for one in written["added_tokens"] if one["id"] not in control]
    return Tokenizer.from_str(json.dumps({**written, "added_tokens": left, "post_processor": None}))
