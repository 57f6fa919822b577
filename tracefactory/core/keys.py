"""Content keys: what makes two requests, or two stages, the same one.

A key is the sha256 of an explicit payload in canonical JSON. The payload names its `key_version`, and values that are
at their default are left out of it, so a field that is added later does not change old keys. What was stored under the
keys of an earlier version is still found: a request knows that key too (`ChatRequest.key_v1`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from tracefactory.core.fingerprint import digest

KEY_VERSION = 2
_PLAIN = frozenset({str, int, float, bool, type(None)})


def request_key(model: str, messages: str, params: Mapping[str, Any], sample: int) -> str:
    """Return the key of one completion.

    Args:
        model: `model_digest` of what decides the model's completions.
        messages: `messages_digest` of the conversation.
        params: the sampling parameters that are set, under their OpenAI names.
        sample: the number of the sample, from 0.
    """
    payload = {"key_version": KEY_VERSION, "request": "chat", "model": model, "messages": messages}
    return digest(without_defaults({**payload, "params": params, "sample": sample}))


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


@dataclass(frozen=True)
class Later:
    """Marks a parameter that came after the keys and ids it would be in: they leave it out while it is at its default.

    Write it as `Annotated[int, Later()]`. It is needed only where parameters are pinned in full (see `pinned`).
    """


def pinned(params: BaseModel, names: Iterable[str] | None = None) -> dict[str, Any]:
    """Return parameters as plain data, those at their default too, which ids and requests of version 1 hang on.

    Args:
        params: the parameters of a decoder or pruner.
        names: those to return; None for all.
    """
    fields = type(params).model_fields
    wanted = {name for name in (fields if names is None else names) if not _is_unset(params, name)}
    return params.model_dump(mode="json", include=wanted)


def _is_unset(params: BaseModel, name: str) -> bool:
    field = type(params).model_fields[name]
    is_later = any(isinstance(mark, Later) for mark in field.metadata)
    return is_later and getattr(params, name) == field.get_default(call_default_factory=True)


def without_defaults(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a mapping without the entries that say nothing: None, "", empty lists and mappings; 0 and False stay.

    Only entries of the mapping itself are looked at, and of mappings inside of it.
    """
    found: dict[str, Any] = {}
    for name, value in values.items():
        kept = without_defaults(value) if type(value) not in _PLAIN and isinstance(value, Mapping) else value
        if kept or isinstance(kept, (bool, int, float)):
            found[name] = kept
    return found
