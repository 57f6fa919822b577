"""A compact JSON format for the log-probabilities of a completion's sampled tokens."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Any

_DIGITS = 5  # decimals of a natural logarithm: servers compute in half or single precision


def packed(reported: Mapping[str, Any]) -> str | None:
    """Return the `logprobs` of a choice in the OpenAI protocol as compact JSON, None when there are none.

    The JSON has the length in bytes and the log-probability of each sampled token, and the bytes of all tokens as one
    text (base64 when they are not UTF-8, as in a completion cut inside a character). Alternatives are dropped.

    Raises:
        KeyError, TypeError, ValueError, OverflowError: when the value does not follow the protocol.
    """
    entries: Sequence[Mapping[str, Any]] | None = reported.get("content")
    if not entries:
        return None
    # The text of a token that is part of a character does not determine its bytes.
    tokens = [_bytes_of(entry) for entry in entries]
    whole = b"".join(tokens)
    try:
        text = {"text": whole.decode()}
    except UnicodeDecodeError:
        text = {"base64": base64.b64encode(whole).decode()}
    numbers = [round(float(entry["logprob"]), _DIGITS) for entry in entries]
    if not all(map(math.isfinite, numbers)):
        raise ValueError("a log-probability is not a finite number")
    return json.dumps({**text, "lengths": list(map(len, tokens)), "logprobs": numbers}, separators=(",", ":"))


def _bytes_of(entry: Mapping[str, Any]) -> bytes:
    """Return the bytes of one token; where they are given, they are a list, since `bytes` of a number is its zeros."""
    if entry.get("bytes") is None:
        return str.encode(entry["token"])
    if not isinstance(entry["bytes"], list):
        raise TypeError("the bytes of a token are a list of numbers")
    return bytes(entry["bytes"])


def unpacked(stored: str) -> tuple[list[bytes], list[float]]:
    """Return the bytes and the natural log-probability of every token in the output of `packed`, in order.

    Raises:
        ValueError: for a text in another format.
    """
    try:
        values = json.loads(stored)
        whole = values["text"].encode() if "text" in values else base64.b64decode(values["base64"])
        ends = [0, *accumulate(map(int, values["lengths"]))]
        numbers = list(map(float, values["logprobs"]))
    except (TypeError, KeyError, AttributeError, RecursionError, OverflowError) as error:
        raise ValueError(f"no log-probabilities in the format of `packed`: {error}") from error
    if len(numbers) != len(ends) - 1 or ends[-1] != len(whole) or sorted(ends) != ends:
        raise ValueError("the log-probabilities are not those of the tokens")
    return [whole[start:end] for start, end in pairwise(ends)], numbers
