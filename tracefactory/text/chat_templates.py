"""Checks that a student's chat template renders what a view holds: some drop the reasoning, or the last answer.

Plain ChatML templates ignore `reasoning_content`; some templates of reasoning models cut everything before `</think>`,
even from the turn that is trained on. A student trained through them never sees the reasoning, without any error.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from tracefactory.core.rows import Frozen

Message = Mapping[str, Any]
_OPEN, _CLOSE = "<think>", "</think>"


class ChatTokenizer(Protocol):
    """The two calls of a transformers tokenizer that are needed here."""

    def apply_chat_template(self, conversation: list[dict[str, Any]], *, tokenize: bool) -> Any:
        """Return the conversation as text when `tokenize` is false."""

    def __call__(self, text: str, *, add_special_tokens: bool) -> Any:
        """Return a mapping whose `input_ids` are the tokens of `text`."""


class RenderReport(Frozen):
    """What a chat template makes of one conversation.

    `missing` names the parts that are not in the rendered text, such as "reasoning of message 1". `tokens` is the
    length of the rendered text; `over` is by how many tokens it exceeds the trainer's maximum, which cuts the answer.
    """

    missing: tuple[str, ...]
    tokens: int
    over: int = 0

    @property
    def ok(self) -> bool:
        """Whether everything is there and nothing would be cut."""
        return not self.missing and not self.over


def check_rendering(
    messages: Sequence[Message], tokenizer: ChatTokenizer, *, max_length: int | None = None
) -> RenderReport:
    """Render a conversation and report which reasoning and answers did not come through.

    `messages` is the `messages` of the chat view, or `prompt + completion` of the sft view. The conversation is
    rendered twice: as it is, and with every part replaced by a marker, since a short answer such as "4" is found by
    accident.
    `max_length` is the trainer's limit in tokens.
    """
    marked = [_marked(index, message) for index, message in enumerate(messages)]
    text = str(tokenizer.apply_chat_template([dict(message) for message in messages], tokenize=False))
    marked_text = str(tokenizer.apply_chat_template(marked, tokenize=False))
    missing = dict.fromkeys([*_missing(messages, text), *_missing(marked, marked_text)])
    tokens = len(tokenizer(text, add_special_tokens=False)["input_ids"])
    over = 0 if max_length is None else max(0, tokens - max_length)
    return RenderReport(missing=tuple(missing), tokens=tokens, over=over)


def _parts(message: Message) -> tuple[str, str]:
    """Return the reasoning and the answer of a message, wherever the reasoning is."""
    content = str(message["content"])
    if message.get("reasoning_content"):
        return str(message["reasoning_content"]).strip(), content.strip()
    before, closed, after = content.partition(_CLOSE)
    if closed and before.lstrip().startswith(_OPEN):
        return before.lstrip().removeprefix(_OPEN).strip(), after.strip()
    return "", content.strip()


def _marked(index: int, message: Message) -> dict[str, Any]:
    """Return a message of the same form whose parts are markers that occur nowhere else."""
    reasoning, _ = _parts(message)
    thought, answer = f"mark-reasoning-{index}-end", f"mark-answer-{index}-end"
    if message.get("reasoning_content"):
        return {**message, "reasoning_content": thought, "content": answer}
    return {**message, "content": f"{_OPEN}\n{thought}\n{_CLOSE}\n\n{answer}" if reasoning else answer}


def _missing(messages: Sequence[Message], text: str) -> list[str]:
    """Return the parts of assistant messages that do not occur in `text`, in their order."""
    found: list[str] = []
    position = 0
    for index, message in enumerate(messages):
        for part, wanted in zip(("reasoning", "answer"), _parts(message), strict=True):
            start = text.find(wanted, position)
            if start >= 0:
                position = start + len(wanted)
            elif message["role"] == "assistant":
                found.append(f"{part} of message {index}")
    return found
