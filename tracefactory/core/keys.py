"""Content keys: two requests, or two stages, with equal keys have equal results.

A key is the sha256 of an explicit payload in canonical JSON. The payload has a `key_version`. Values that are at their
default are left out, so a field that is added later does not change old keys. Completions stored under the keys of
version 1 are still found, because a request also has its old key (`ChatRequest.key_v1`).
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
    """Return the digest of a model's identity. Empty entries are left out."""
    return digest(without_defaults(identity))


def messages_digest(messages: Sequence[Mapping[str, Any]]) -> str:
    """Return the digest of a conversation."""
    return digest([without_defaults(message) for message in messages])


def request_key_v1(
    identity: Mapping[str, Any], messages: Sequence[Mapping[str, Any]], params: Mapping[str, Any], sample: int
) -> str:
    """Return the key of a request in version 1, which covered all fields, including those at their default.

    Args:
        identity: the identity of the model.
        messages: the conversation.
        params: the sampling parameters.
        sample: the number of the sample, from 0.
    """
    return digest({"model_identity": identity, "messages": messages, "params": params, "sample_index": sample})


def stage_key(content: Mapping[str, Any]) -> str:
    """Return the key of a stage.

    Args:
        content: its identity: operation, version, parameters, digests of what it uses, and the keys of its inputs.
    """
    return digest({"key_version": KEY_VERSION, **without_defaults(content)})


@dataclass(frozen=True)
class Later:
    """Marks a parameter that was added later: it is left out of keys and ids while it is at its default.

    Write it as `Annotated[int, Later()]`. It is needed only for parameters that are pinned in full (see `pinned`).
    """


def pinned(params: BaseModel, names: Iterable[str] | None = None) -> dict[str, Any]:
    """Return parameters as plain data, including those at their default, except unset `Later` parameters.

    Ids, and requests of version 1, are made from this data.

    Args:
        params: the parameters of a decoder or pruner.
        names: the parameters to return; None for all.
    """
    fields = type(params).model_fields
    wanted: set[str] = set()
    for name in fields if names is None else names:
        later = any(isinstance(mark, Later) for mark in fields[name].metadata)
        if not later or getattr(params, name) != fields[name].get_default(call_default_factory=True):
            wanted.add(name)
    return params.model_dump(mode="json", include=wanted)


def without_defaults(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a mapping without empty entries: None, "", empty lists and empty mappings. 0 and False are kept.

    Nested mappings are treated in the same way; items of lists are not changed.
    """
    found: dict[str, Any] = {}
    for name, value in values.items():
        kept = without_defaults(value) if type(value) not in _PLAIN and isinstance(value, Mapping) else value
        if kept or isinstance(kept, (bool, int, float)):
            found[name] = kept
    return found
