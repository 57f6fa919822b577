"""How chat requests and answers look on the wire: the OpenAI protocol, or another one that is mapped to it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Wire:
    """A chat protocol; by default OpenAI's, in which the key is a bearer token and nothing is mapped.

    Attributes:
        path: where chat requests are sent, below the base URL.
        headers: returns the headers of every request for a key; None leaves one out that the HTTP client would send.
        answer: returns the JSON of an answer in the form of the OpenAI protocol.
    """

    path: str = "/chat/completions"
    headers: Callable[[str], Mapping[str, str | None]] = lambda secret: {}
    answer: Callable[[Any], Any] = lambda answer: answer
