"""One answer of a model, as it is stored."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, Field

from tracefactory.core.rows import Frozen

MOST_TOKENS = 10**9
"""A larger count of tokens is a fault of the server; with it, sums and columns of 64 bits would overflow."""

Tokens = Annotated[int, Field(ge=0, le=MOST_TOKENS, strict=True)]
"""A number of tokens; 0 where the server does not say."""


def _utf8(text: str) -> str:
    text.encode()  # a lone surrogate is a UnicodeEncodeError, which is a ValueError
    return text


Text = Annotated[str, AfterValidator(_utf8)]
Seconds = Annotated[float, Field(ge=0, le=1e11, allow_inf_nan=False)]


class Completion(Frozen):
    """One answer of a server, with everything it reported about it. All text is valid UTF-8.

    `reasoning` is the server's separate reasoning field, None when it sent none; `logprobs` are those of the sampled
    tokens, if requested (see `serving.logprobs.packed`); `created` is Unix time at arrival; `seconds` is the wall time
    of the attempt that succeeded and `attempts` how many were made. `cached_tokens` are among those of the prompt,
    `reasoning_tokens` among those of the completion; `batched` is whether a batch API answered, at its price.
    """

    content: Text
    reasoning: Text | None = None
    refusal: Text | None = None
    finish_reason: Text
    prompt_tokens: Tokens = 0
    completion_tokens: Tokens = 0
    cached_tokens: Tokens = 0
    reasoning_tokens: Tokens = 0
    batched: bool = False
    batch: str = ""  # the provider's id of that batch
    served_model: Text = ""
    system_fingerprint: Text = ""
    logprobs: str | None = None
    created: Seconds
    seconds: Seconds
    attempts: Annotated[int, Field(ge=0, le=MOST_TOKENS)] = 1

    @property
    def reports_usage(self) -> bool:
        """Whether the server reported how many tokens it took: every prompt has some, and every text it wrote too."""
        wrote = bool(self.content or self.reasoning)
        return bool(self.prompt_tokens and (self.completion_tokens or not wrote))


def tokens_together(*values: Any) -> int:
    """Return the sum of counts that a server reports apart, where None is no tokens; 0 when one cannot be read."""
    counts = [token_count(value) for value in values if value is not None]
    readable = all(type(value) is int and value == token_count(value) for value in values if value is not None)
    return token_count(sum(counts)) if readable else 0


def token_count(value: Any) -> int:
    """Return a number of tokens that a server reports; 0, for unknown, where it is no whole number in range."""
    return value if type(value) is int and 0 <= value <= MOST_TOKENS else 0
