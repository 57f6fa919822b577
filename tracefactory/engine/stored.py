"""Records of the request store as stages may use them, whatever an earlier version or a program has written there.

A record is never paid for again because it is odd: a number that cannot be is read as unknown, and a record whose text
cannot be read is a failure of its request, which names it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from pydantic import ValidationError

from tracefactory.core.completion import MOST_TOKENS, Completion, token_count
from tracefactory.core.model import ChatRequest, RequestFailed
from tracefactory.core.prices import Price
from tracefactory.core.stage import Answer, Record
from tracefactory.store.requests import RequestStore

UNREADABLE_RECORD = "unreadable_record"
"""The kind of failure of a stored completion that cannot be read."""

_COUNTS = ("prompt_tokens", "completion_tokens", "cached_tokens", "reasoning_tokens")
_NAMES = ("served_model", "system_fingerprint", "batch")


def usable(key: str, record: Any) -> Answer:
    """Return a stored record with numbers in range, or the failure of one whose text cannot be read.

    Args:
        key: the key that it is stored under.
        record: what is stored.
    """
    if _is_valid(record):
        return record  # type: ignore[no-any-return]
    try:
        mended = _mended(record)
        why = "" if _is_valid(mended) else "it has no text in the form of a completion"
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError) as error:
        mended, why = {}, str(error) if type(error) is TypeError else type(error).__name__
    if not why:
        return mended
    message = f"the stored record {key} cannot be read: {why}; `tracefactory explain {key}` shows it"
    return RequestFailed(UNREADABLE_RECORD, message, attempts=0, retryable=False)


def stored_answers(store: RequestStore, requests: Sequence[ChatRequest]) -> dict[str, Answer]:
    """Return what is stored for requests by their keys, including records under keys of version 1.

    Args:
        store: the request store.
        requests: the requests. One whose record cannot be read has a failure: it is not asked for again.
    """
    records = store.get(request.key for request in requests)
    found = {key: usable(key, record) for key, record in records.items()}
    if store.has_v1_keys:
        older = {request.key_v1: request.key for request in requests if request.key not in found}
        for key_v1, record in store.get(older).items():
            answer = usable(key_v1, record)
            found[older[key_v1]] = answer if isinstance(answer, RequestFailed) else {**answer, "key_v1": key_v1}
    return found


def stored_record(store: RequestStore, request: ChatRequest) -> Record | None:
    """Return the stored record of a request, None when there is none.

    Raises:
        RequestFailed: when there is one that cannot be read.
    """
    answer = stored_answers(store, [request]).get(request.key)
    if isinstance(answer, RequestFailed):
        raise answer
    return answer


def usable_records(records: Mapping[str, Any]) -> dict[str, Record]:
    """Return those of some stored records, by key, whose text can be read."""
    read = {key: usable(key, record) for key, record in records.items()}
    return {key: one for key, one in read.items() if not isinstance(one, RequestFailed)}


def _is_valid(record: Any) -> bool:
    try:
        completion, request = record["completion"], record["request"]
        kind = _decoded() if "provenance" in completion else Completion
        kind.model_validate(completion)
        if "price" in record:
            Price.model_validate(record["price"])
        identity = request["model_identity"]
        return _is_cost(record["cost"]) and isinstance(record["run"], str) and isinstance(identity, dict)
    except (ValidationError, KeyError, TypeError, AttributeError, ValueError):
        return False


@cache
def _decoded() -> type[Completion]:
    """Return the completions that two models wrote; the module takes long to import, and few pipelines have them."""
    from tracefactory.decoding.provenance import Decoded

    return Decoded


def _is_cost(cost: Any) -> bool:
    return cost is None or (type(cost) in (int, float) and math.isfinite(cost) and 0 <= cost <= MOST_TOKENS)


def _mended(record: Any) -> dict[str, Any]:
    """Return a record with what is out of range left out.

    Raises:
        TypeError: when it has no completion with a text.
    """
    if not isinstance(record, dict) or not isinstance(record.get("completion"), dict):
        raise TypeError("it holds no completion")
    completion = dict(record["completion"])
    if not isinstance(completion.get("content"), str):
        raise TypeError("its content is no text")
    for name in ("reasoning", "refusal"):
        if not isinstance(completion.get(name), str | None):
            raise TypeError(f"its {name} is no text")
    completion |= {name: token_count(completion.get(name)) for name in _COUNTS}
    completion |= {name: "" for name in _NAMES if not isinstance(completion.get(name, ""), str)}
    if not isinstance(completion.get("finish_reason"), str):
        completion["finish_reason"] = "unknown"
    if not isinstance(completion.get("logprobs"), str | None):
        completion["logprobs"] = None
    completion["attempts"] = token_count(completion.get("attempts")) or 1
    completion["batched"] = completion.get("batched") is True
    completion |= {name: _seconds(completion.get(name)) for name in ("created", "seconds")}
    if "provenance" not in completion:  # fields of another version are no part of the text
        completion = {name: value for name, value in completion.items() if name in Completion.model_fields}
    return _with_price({**record, "completion": completion})


def _with_price(record: dict[str, Any]) -> dict[str, Any]:
    """Return a record whose cost is unknown where it cannot be read, or where its price cannot."""
    try:
        Price.model_validate(record.get("price", {"source": "unknown"}))
    except ValidationError:
        record["price"] = {"source": "unknown"}
    if not _is_cost(record.get("cost")):
        record["cost"] = None
    record.setdefault("cost", None)
    if not isinstance(record.get("run"), str):
        record["run"] = ""
    request = record.get("request")
    if not isinstance(request, dict) or not isinstance(request.get("model_identity"), dict):
        record["request"] = {"model_identity": {}, "messages": [], "params": {}, "sample_index": 0}
    return record


def _seconds(value: Any) -> float:
    is_number = type(value) in (int, float) and 0 <= value <= 1e11
    return float(value) if is_number else 0.0
