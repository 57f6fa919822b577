"""How chat requests and answers look on the wire: the OpenAI protocol, or another one that is mapped to it."""

from __future__ import annotations

from typing import Any


class Wire:
    """The OpenAI chat protocol: the key is a bearer token, and nothing is mapped."""

    path = "/chat/completions"
    """Where chat requests are sent, below the base URL."""

    def headers(self, secret: str) -> dict[str, str | None]:
        """Return the headers of every request; None leaves one out that the HTTP client would send."""
        return {}

    def answer(self, answer: Any) -> Any:
        """Return the JSON of an answer in the form of the OpenAI protocol."""
        return answer
