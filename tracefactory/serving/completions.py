"""Read the JSON of a chat answer as a `Completion`, whatever a server sent.

A text that arrived was paid for and is kept: a count, a reason or a log-probability that cannot be read is left out
beside it. Only an answer without a readable text is a failure of the attempt.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from typing import Any

from tracefactory.core.completion import Completion, token_count
from tracefactory.core.model import ChatRequest
from tracefactory.serving.failures import AttemptFailed
from tracefactory.serving.logprobs import packed

UNREADABLE = (
    KeyError,
    IndexError,
    TypeError,
    AttributeError,
    ValueError,
    OverflowError,
    RecursionError,
)
"""What reading JSON of an unexpected form raises."""
MOST_BYTES = 256 << 20
"""Bytes of a response that are read; a longer one is refused while it comes."""
UNKNOWN_REASON = "unknown"
"""The finish reason of a text whose server told none that can be read."""

_SURROGATE = re.compile("[\ud800-\udfff]")
_ABORTED = frozenset({"error", "abort"})  # the text in such a response is not a completion
_MOST_NAME = 1000  # characters of a name that a server gives, such as the model's


def too_large() -> AttemptFailed:
    """Return the failure of a response of more than `MOST_BYTES`."""
    return AttemptFailed("bad_response", f"the response has more than {MOST_BYTES >> 20} MiB and was not read further")


def read_completion(
    request: ChatRequest, answer: Any, echoes_prefill: bool, attempt: int, seconds: float
) -> Completion:
    """Return the completion in the JSON of a response.

    Args:
        request: what was asked.
        answer: the response, in the form of the OpenAI protocol.
        echoes_prefill: whether the server repeats a prefill.
        attempt: the number of the attempt, from 1.
        seconds: how long the attempt took.

    Raises:
        AttemptFailed: when the server aborted the request, or sent no text that can be read.
    """
    try:
        return _read(request, answer, echoes_prefill, attempt, seconds)
    except UNREADABLE as error:
        message = f"the response has an unexpected format: {type(error).__name__}"
        raise AttemptFailed("bad_response", message) from error


def _read(request: ChatRequest, answer: Any, echoes_prefill: bool, attempt: int, seconds: float) -> Completion:
    choice = answer["choices"][0]
    message, finish_reason = choice["message"], choice.get("finish_reason", UNKNOWN_REASON)
    if finish_reason is None or (isinstance(finish_reason, str) and finish_reason in _ABORTED):
        raise AttemptFailed("server_error", f"the server aborted the request (finish_reason {finish_reason})")
    content, reasoning = _texts(message)
    prefill = request.messages[-1]["content"] if echoes_prefill and request.has_prefill else ""
    return Completion(
        content=content.removeprefix(prefill),
        reasoning=reasoning,
        refusal=_text_or_none(message.get("refusal")),
        finish_reason=_name(finish_reason) or UNKNOWN_REASON,
        **_usage(answer.get("usage")),
        served_model=_name(answer.get("model")),
        system_fingerprint=_name(answer.get("system_fingerprint")),
        logprobs=_logprobs(choice.get("logprobs")),
        created=time.time(),
        seconds=max(0.0, seconds),
        attempts=attempt,
    )


def _texts(message: Mapping[str, Any]) -> tuple[str, str | None]:
    """Return content and reasoning of a message.

    Some servers send the content as a list of parts, of which those of thinking are reasoning.

    Raises:
        TypeError: when neither is a text.
    """
    content, thought = message.get("content"), message.get("reasoning_content") or message.get("reasoning")
    if thought is None and isinstance(content, list):
        thoughts = [one for one in content if isinstance(one, dict) and one.get("type") == "thinking"]
        content = [one for one in content if one not in thoughts]
        thought = [one.get("thinking") for one in thoughts] or None
        if thought is not None and not content:
            content = None
    reasoning = _text_or_none(thought)
    if content is not None and _text_or_none(content) is None:
        raise TypeError("the content is no text")
    if content is None and reasoning is None and thought is not None:
        raise TypeError("the reasoning is no text, and there is no other")
    return _text_or_none(content) or "", reasoning


def _text_or_none(value: Any) -> str | None:
    """Return a text, or the texts among the parts of one; None where there is none."""
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, dict):
        return _text_or_none(value.get("text")) if isinstance(value.get("text"), str) else None
    if isinstance(value, list):
        parts = [one for one in map(_part, value) if one is not None]
        return "".join(parts) if parts or not value else None
    return None


def _part(value: Any) -> str | None:
    """Return the text of one part: a string, or an object with `text`, or a list of those, one level deep."""
    if isinstance(value, list):
        parts = [one for one in value if isinstance(one, str | dict)]
        return _text_or_none(parts) if parts else None
    return _text_or_none(value)


def _usage(usage: Any) -> dict[str, int]:
    """Return the counts of tokens; what is missing or no count is 0, which is unknown."""
    usage = usage if isinstance(usage, dict) else {}
    prompt, completion = token_count(usage.get("prompt_tokens")), token_count(usage.get("completion_tokens"))
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "cached_tokens": _detail(usage, "prompt_tokens_details", "cached_tokens"),
        "reasoning_tokens": _detail(usage, "completion_tokens_details", "reasoning_tokens"),
    }


def _detail(usage: Mapping[str, Any], group: str, name: str) -> int:
    details = usage.get(group)
    return token_count(details.get(name)) if isinstance(details, dict) else 0


def _logprobs(reported: Any) -> str | None:
    """Return the log-probabilities to store; None where there are none or they cannot be read."""
    try:
        return None if reported is None else packed(reported)
    except UNREADABLE:
        return None  # the text beside them was paid for; the canary looks whether a server sends any


def _name(value: Any) -> str:
    return clean(value)[:_MOST_NAME] if isinstance(value, str) else ""


def clean(text: str) -> str:
    """Replace lone surrogates by U+FFFD: JSON can encode them, UTF-8 (and therefore Arrow) cannot."""
    return _SURROGATE.sub("\ufffd", text)
