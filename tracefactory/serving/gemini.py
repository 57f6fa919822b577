"""Google's own chat protocol, which its batches are written in (https://ai.google.dev/api/generate-content).

A `use: openai` model of Google's is asked online by its OpenAI-compatible address; for batches, the same requests are
mapped here, and what cannot be mapped is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tracefactory.core.completion import token_count, tokens_together

_PARAMETERS = {
    "temperature": "temperature",
    "top_p": "topP",
    "top_k": "topK",
    "max_tokens": "maxOutputTokens",
    "max_completion_tokens": "maxOutputTokens",
    "seed": "seed",
    "presence_penalty": "presencePenalty",
    "frequency_penalty": "frequencyPenalty",
}
# https://ai.google.dev/gemini-api/docs/openai: what the levels of the OpenAI protocol mean for thinking.
_BUDGETS = {"none": 0, "minimal": 1024, "low": 1024, "medium": 8192, "high": 24576}
_FINISHED = {"STOP": "stop", "MAX_TOKENS": "length"}
_BLOCKED = frozenset({"SAFETY", "RECITATION", "BLOCKLIST", "PROHIBITED_CONTENT", "SPII"})


def generate_body(body: Mapping[str, Any]) -> dict[str, Any]:
    """Return a GenerateContentRequest for the body of a chat request.

    Raises:
        ValueError: for a parameter that has no counterpart; it names the parameter.
    """
    config: dict[str, Any] = {}
    for name, value in body.items():
        if name in {"messages", "model"} or value is None:
            continue
        if name in _PARAMETERS:
            config[_PARAMETERS[name]] = value
        elif name == "stop":
            config["stopSequences"] = [value] if isinstance(value, str) else list(value)
        elif name == "reasoning_effort" and value in _BUDGETS:
            config["thinkingConfig"] = {"thinkingBudget": _BUDGETS[value]}
        elif name == "extra_body" and set(value) == {"google"} and set(value["google"]) == {"thinking_config"}:
            given = value["google"]["thinking_config"]
            named = {"thinking_budget": "thinkingBudget", "include_thoughts": "includeThoughts"}
            config["thinkingConfig"] = {named.get(one, one): number for one, number in given.items()}
        else:
            raise ValueError(f"{name} cannot be sent in batches of Gemini")
    turns = [one for one in body["messages"] if one["role"] != "system"]
    roles = {"assistant": "model"}
    mapped: dict[str, Any] = {
        "contents": [{"role": roles.get(one["role"], "user"), "parts": [{"text": one["content"]}]} for one in turns]
    }
    if system := [{"text": one["content"]} for one in body["messages"] if one["role"] == "system"]:
        mapped["systemInstruction"] = {"parts": system}
    return mapped | ({"generationConfig": config} if config else {})


def is_blocked(answer: Mapping[str, Any]) -> bool:
    """Return whether the provider's filter refused the prompt."""
    return not answer.get("candidates") and bool((answer.get("promptFeedback") or {}).get("blockReason"))


def chat_answer(answer: Mapping[str, Any]) -> dict[str, Any]:
    """Return a GenerateContentResponse as a chat completion; thoughts become `reasoning_content`."""
    candidate = answer["candidates"][0]
    content = candidate.get("content") or {}
    parts = [part for part in content.get("parts") or () if isinstance(part, dict)]
    texts = [part for part in parts if isinstance(part.get("text"), str)]
    if parts and not texts and any("text" in part for part in parts):
        raise TypeError("the parts have no text")
    thoughts = [part["text"] for part in texts if part.get("thought")]
    written: dict[str, Any] = {
        "role": "assistant",
        "content": "".join(part["text"] for part in texts if not part.get("thought")),
    }
    if thoughts:
        written["reasoning_content"] = "".join(thoughts)
    return {
        "model": answer.get("modelVersion"),
        "choices": [{"index": 0, "message": written, "finish_reason": _finished(candidate.get("finishReason", ""))}],
        "usage": _usage(answer.get("usageMetadata")),
    }


def _finished(reason: Any) -> Any:
    if not isinstance(reason, str):
        return reason
    return "content_filter" if reason in _BLOCKED else _FINISHED.get(reason, reason.lower())


def _usage(usage: Any) -> dict[str, Any]:
    usage = usage if isinstance(usage, dict) else {}
    thought = usage.get("thoughtsTokenCount")
    return {
        "prompt_tokens": token_count(usage.get("promptTokenCount")),
        "completion_tokens": tokens_together(usage.get("candidatesTokenCount"), thought),
        "prompt_tokens_details": {"cached_tokens": token_count(usage.get("cachedContentTokenCount"))},
        "completion_tokens_details": {"reasoning_tokens": token_count(thought)},
    }
