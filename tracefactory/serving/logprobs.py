"""The log-probabilities of a completion's own tokens, kept small: the bytes of each and its number."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

_DIGITS = 5  # decimals of a natural logarithm: servers compute in half or single precision


def packed(reported: Mapping[str, Any]) -> str | None:
    """Return what a server of the OpenAI protocol reported as `logprobs` of a choice as one JSON text; None for none.

    Of each sampled token its length in bytes and its log-probability are kept, and the bytes of all of them as one text
    (in base64 where they are no UTF-8, as in a completion cut inside of a character). Alternatives are dropped.

    Raises:
        KeyError, TypeError, ValueError: for what is not of the protocol.
    """
    entries: Sequence[Mapping[str, Any]] | None = reported.get("content")
    if not entries:
        return None
    # A token's text alone cannot say which bytes it is when it holds a part of a character.
    tokens = [entry["token"].encode() if entry.get("bytes") is None else bytes(entry["bytes"]) for entry in entries]
    whole = b"".join(tokens)
    try:
        text = {"text": whole.decode()}
    except UnicodeDecodeError:
        text = {"base64": base64.b64encode(whole).decode()}
    numbers = [round(float(entry["logprob"]), _DIGITS) for entry in entries]
    return json.dumps({**text, "lengths": list(map(len, tokens)), "logprobs": numbers}, separators=(",", ":"))


def unpacked(stored: str) -> tuple[list[bytes], list[float]]:
    """Return the bytes and the log-probability (natural logarithm) of every token that `packed` kept, in order."""
    kept = json.loads(stored)
    whole = kept["text"].encode() if "text" in kept else base64.b64decode(kept["base64"])
    ends = [0]
    for length in kept["lengths"]:
        ends.append(ends[-1] + length)
    return [whole[start:end] for start, end in pairwise(ends)], kept["logprobs"]
