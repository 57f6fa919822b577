"""Content keys: what makes two requests, or two stages, the same one.

A key is the sha256 of an explicit payload in canonical JSON. The payload names its `key_version`, and values that are
at their default are left out of it, so a field that is added later does not change old keys. What was stored under the
keys of an earlier version is still found: a request knows that key too (`ChatRequest.key_v1`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tracefactory.core.fingerprint import digest

KEY_VERSION = 2


def request_key(model: str, messages: str, params: Mapping[str, Any], sample: int) -> str:
    """Return the key of one completion.

    Args:
        model: `model_digest` of what decides the model's completions.
        messages: `messages_digest` of the conversation.
        params: the sampling parameters that are set, under their OpenAI names.
        sample: the number of the sample, from 0.
    """
    payload = {"key_version": KEY_VERSION, "request": "chat", "model": model, "messages": messages}
    payload |= {"params": without_defaults(params), "sample": sample}
    return digest(without_defaults(payload))


def model_digest(identity: Mapping[str, Any]) -> str:
    """Return the digest of a model's identity; entries that are empty count as absent."""
    return digest(without_defaults(identity))


def messages_digest(messages: Sequence[Mapping[str, Any]]) -> str:
    """Return the digest of a conversation."""
    return digest([without_defaults(message) for message in messages])


def request_key_v1(
    identity: Mapping[str, Any], messages: Sequence[Mapping[str, Any]], params: Mapping[str, Any], sample: int
) -> str:
    """Return the key that version 1 gave a request: of all its fields, whatever their values."""
    fields = {"model_identity": identity, "messages": messages, "params": params, "sample_index": sample}
    return digest(fields)


def stage_key(content: Mapping[str, Any]) -> str:
    """Return the key of a stage from its identity: operation, version, parameters, what they use, input keys."""
    return digest({"key_version": KEY_VERSION, **without_defaults(content)})


def without_defaults(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a mapping without the entries that say nothing: None, "", empty lists and mappings; 0 and False stay.

    Only entries of the mapping itself are looked at, and of mappings inside of it.
    """
    found = {name: without_defaults(value) if isinstance(value, Mapping) else value for name, value in values.items()}
    return {name: value for name, value in found.items() if value is not None and value not in ("", [], (), {})}
