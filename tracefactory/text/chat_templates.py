"""Check that a student's chat template renders the reasoning and the answers of a view's messages.

Plain ChatML templates ignore `reasoning_content`; some templates of reasoning models remove everything before
`</think>`, even in the turn to train on. A student trained with them never sees the reasoning, and there is no error.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from tracefactory.core.rows import Frozen

Message = Mapping[str, Any]
_OPEN, _CLOSE = "<think>", "</think>"


class ChatTokenizer(Protocol):
    """The two methods of a transformers tokenizer that are used here."""

    def apply_chat_template(self, conversation: list[dict[str, Any]], *, tokenize: bool) -> Any:
        """Return the conversation as text if `tokenize` is false."""

    def __call__(self, text: str, *, add_special_tokens: bool) -> Any:
        """Return a mapping whose `input_ids` are the tokens of `text`."""


class RenderReport(Frozen):
    """The result of rendering one conversation with a chat template.

    `missing` names the parts that are not in the rendered text, such as "reasoning of message 1". `tokens` is the
    length of the rendered text; `over` is the number of tokens beyond the trainer's maximum, which would truncate it.
    """

    missing: tuple[str, ...]
    tokens: int
    over: int = 0

    @property
    def ok(self) -> bool:
        """Whether no part is missing and nothing would be truncated."""
        return not self.missing and not self.over


def check_rendering(
    messages: Sequence[Message], tokenizer: ChatTokenizer, *, max_length: int | None = None
) -> RenderReport:
    """Render a conversation and report reasoning and answers that are missing in the result.

    The conversation is rendered twice: unchanged, and with every part replaced by a marker, because a short answer such
    as "4" could be found by accident.

    Args:
        messages: the messages of the chat view, or `prompt + completion` of the sft view.
        tokenizer: the student's tokenizer.
        max_length: the trainer's limit in tokens; None for no limit.
    """
    marked = [_marked(index, message) for index, message in enumerate(messages)]
    text = str(tokenizer.apply_chat_template([dict(message) for message in messages], tokenize=False))
    marked_text = str(tokenizer.apply_chat_template(marked, tokenize=False))
    missing = dict.fromkeys([*_missing(messages, text), *_missing(marked, marked_text)])
    tokens = len(tokenizer(text, add_special_tokens=False)["input_ids"])
    over = 0 if max_length is None else max(0, tokens - max_length)
    return RenderReport(missing=tuple(missing), tokens=tokens, over=over)


def _parts(message: Message) -> tuple[str, str]:
    """Return the reasoning and the answer of a message; the reasoning is in its own field or in tags."""
    content = str(message["content"])
    if message.get("reasoning_content"):
        return str(message["reasoning_content"]).strip(), content.strip()
    before, closed, after = content.partition(_CLOSE)
    if closed and before.lstrip().startswith(_OPEN):
        return before.lstrip().removeprefix(_OPEN).strip(), after.strip()
    return "", content.strip()


def _marked(index: int, message: Message) -> dict[str, Any]:
    """Return a message of the same form with unique markers as its parts."""
    reasoning, _ = _parts(message)
    thought, answer = f"mark-reasoning-{index}-end", f"mark-answer-{index}-end"
    if message.get("reasoning_content"):
        return {**message, "reasoning_content": thought, "content": answer}
    return {**message, "content": f"{_OPEN}\n{thought}\n{_CLOSE}\n\n{answer}" if reasoning else answer}


def _missing(messages: Sequence[Message], text: str) -> list[str]:
    """Return the parts of assistant messages that do not occur in `text` in their order."""
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
