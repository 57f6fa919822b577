"""Drop traces that repeat themselves: loops, and text made of what was said before.

Three numbers, each between 0 and 1 or a count:

- the longest *loop*: something said again and again at once, with nothing in between, in tokens;
- the share of tokens inside *n-grams* that occurred before;
- the share of characters in *lines* that occurred before.

The last two are rules of Gopher's quality filters (Rae et al. 2021, "Scaling Language Models", arXiv:2112.11446, table
A1), which datatrove and others took over. Their thresholds were made for web pages and would drop most long reasoning,
which restates its problem and recounts its cases; so the n-grams are longer here and the shares higher. A token is a
run of letters or digits, one CJK character (which has no spaces to split at), or one sign.
"""

import re

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from tracefactory.filters import KEEP, Decision, Params, Trace, drop, trace_filter

_TOKEN = re.compile(r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]|[^\W_]+|[^\w\s]|_")
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)

Tokens = NDArray[np.uint64]


class RepetitionParams(Params):
    """`max_loop` bounds the longest loop in tokens, for loops of up to `max_period` tokens said at least three times.

    `max_ngram_share` bounds the share of tokens in n-grams of `ngram` tokens that occurred before, `max_line_share` the
    share of characters in lines that occurred before. Both shares are left out for a part of fewer than `min_tokens`
    tokens: a small table of numbers is no repetition.
    """

    max_loop: int = Field(default=200, ge=1)
    max_period: int = Field(default=400, ge=1)
    ngram: int = Field(default=20, ge=2)
    max_ngram_share: float = Field(default=0.5, ge=0, le=1)
    max_line_share: float = Field(default=0.3, ge=0, le=1)
    min_tokens: int = Field(default=100, ge=0)


@trace_filter
def repetition(trace: Trace, params: RepetitionParams) -> Decision:
    """Keep traces whose reasoning and answer, each taken alone, neither loop nor mostly repeat themselves."""
    # Each alone, because an answer may well say again what the reasoning came to.
    for part, text in (("reasoning", trace.reasoning), ("answer", trace.answer_text)):
        tokens = _tokens(text)
        size, period = _longest_loop(tokens, params.max_period)
        if size > params.max_loop:
            return drop("loop", f"{part}: {size} tokens, the same {period} again and again")
        if len(tokens) < params.min_tokens:
            continue
        if (share := _repeated_ngrams(tokens, params.ngram)) > params.max_ngram_share:
            return drop("repeated_ngrams", f"{part}: {share:.2f} of the tokens")
        if (share := _repeated_lines(text)) > params.max_line_share:
            return drop("repeated_lines", f"{part}: {share:.2f} of the characters")
    return KEEP


def _tokens(text: str) -> Tokens:
    """Return one number per token, equal for equal tokens."""
    numbers: dict[str, int] = {}
    return np.array([numbers.setdefault(token, len(numbers)) for token in _TOKEN.findall(text)], dtype=np.uint64)


def _longest_loop(tokens: Tokens, max_period: int) -> tuple[int, int]:
    """Return (tokens, period) of the longest stretch that is one unit said at least three times; (0, 0) if none is.

    Tokens loop with period p as long as each equals the one p places before it.
    """
    longest = (0, 0)
    for period in range(1, min(max_period, len(tokens) // 3) + 1):
        breaks = np.flatnonzero(tokens[period:] != tokens[:-period])
        edges = np.concatenate(([-1], breaks, [len(tokens) - period]))
        size = int(np.diff(edges).max()) - 1 + period
        if size >= 3 * period and size > longest[0]:
            longest = (size, period)
    return longest


def _repeated_ngrams(tokens: Tokens, n: int) -> float:
    """Return the share of tokens that lie in an n-gram which occurred before."""
    count = len(tokens) - n + 1
    if count < 2:
        return 0.0
    # A polynomial hash modulo 2**64 stands for the n-gram: no table of tuples for tens of thousands of tokens.
    hashes = np.zeros(count, dtype=np.uint64)
    for place in range(n):
        hashes = hashes * _MULTIPLIER + tokens[place : place + count] + np.uint64(1)
    again = np.ones(count, dtype=bool)
    again[np.unique(hashes, return_index=True)[1]] = False
    covered = np.zeros(len(tokens) + 1, dtype=np.int64)
    starts = np.flatnonzero(again)
    np.add.at(covered, starts, 1)
    np.add.at(covered, starts + n, -1)
    return float((covered.cumsum()[:-1] > 0).mean())


def _repeated_lines(text: str) -> float:
    """Return the share of characters that lie in a line which occurred before."""
    lines = [line for line in map(str.strip, text.splitlines()) if line]
    seen: set[str] = set()
    again = 0
    for line in lines:
        again += len(line) if line in seen else 0
        seen.add(line)
    return again / max(1, sum(map(len, lines)))
