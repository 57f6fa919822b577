"""A token-level client of vLLM servers, for scoring and decoding (endpoint /inference/v1/generate).

Requests and responses consist of the model's token ids, without text. Log-probabilities are natural logarithms.

Scoring uses the server's prefix cache, which vLLM does not do by default (`skip_reading_prefix_cache`): 16 new tokens
after 512 cached ones took a ninth of the time of all 528, measured with vLLM 0.32 on a CPU. With the V1 model runner,
the values of tokens inside the cached part are uninitialised memory (the V2 runner omits these rows). Therefore only
the rows after the reported number of cached tokens are read, and when the cached part overlaps the requested tokens,
the request is repeated without the cache. When the uninitialised memory contains a number that JSON cannot represent
(3 of 10 responses, measured with 20 likeliest tokens), the server rejects its own response and the request is repeated.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tracefactory.core.errors import Mistake, UserError
from tracefactory.core.model import RequestFailed
from tracefactory.serving.client import ChatClient
from tracefactory.serving.logprobs_mode import TEMPERATURES, prompt_logprobs_fault

_PATH = "/inference/v1/generate"
_CACHED_TRIES = 3
_PROBED = 5  # likeliest tokens of each position
_COMPLETE = frozenset({"stop", "length"})  # a server that shuts down aborts requests and returns partial responses

Ids = Sequence[int]
Likeliest = tuple[tuple[int, float], ...]
"""(token id, log-probability) pairs, likeliest first."""


@dataclass(frozen=True)
class TokenRow:
    """One token with its log-probability and rank (1: the likeliest), and the likeliest tokens of its position."""

    token_id: int
    logprob: float
    rank: int
    likeliest: Likeliest


@dataclass(frozen=True)
class Drawn:
    """Tokens that the server sampled, and why it stopped ("stop", "length")."""

    rows: tuple[TokenRow, ...]
    finish_reason: str
    prompt_tokens: int
    cached_tokens: int


@dataclass(frozen=True)
class Scored:
    """The scores of given tokens: a row for each, and the likeliest tokens after the last one.

    `computed_tokens` counts the tokens that the servers computed because they were not in the cache.
    """

    rows: tuple[TokenRow, ...]
    next: Likeliest
    computed_tokens: int


@dataclass(frozen=True)
class _Answer:
    """The response to one scoring request, with the rows of the prompt tokens that were not cached."""

    rows: Mapping[int, TokenRow]  # by position
    next: Likeliest
    cached: int


class TokenClient:
    """Samples and scores tokens with the client of a vLLM model.

    The caller owns `client`. Requests with the same `near` go to the same server, which has their common prefix in its
    cache; requests of one trace share it.
    """

    def __init__(self, client: ChatClient) -> None:
        self._client = client
        self._checking = asyncio.Lock()
        self._is_raw = False

    async def draw(
        self,
        prompt: Ids,
        *,
        max_tokens: int,
        temperature: float,
        top_p: float = 1.0,
        top_k: int = 0,
        seed: int | None = None,
        stop_token_ids: Ids = (),
        likeliest: int = 0,
        near: str = "",
        extra: Mapping[str, Any] | None = None,
    ) -> Drawn:
        """Sample up to `max_tokens` tokens after `prompt`, each with the `likeliest` tokens of its position.

        `extra` is added to the sampling parameters, with vLLM's names. The server's engine argument `logprobs_mode`
        decides whether log-probabilities are the model's own (`raw_logprobs`) or those after temperature and top-p
        (`processed_logprobs`).

        Raises:
            RequestFailed, RunError: as `ChatClient.complete` does.
        """
        sampling: dict[str, Any] = {
            "max_tokens": max_tokens,
            "temperature": temperature,
            "top_p": top_p,
            "top_k": top_k,
            "stop_token_ids": list(stop_token_ids),
            "logprobs": _asked_for(likeliest),
            **(extra or {}),
        }
        if seed is not None:
            sampling["seed"] = seed
        body = self._body(prompt, sampling)
        return await self._client.ask(_PATH, body, lambda answer: _drawn(answer, likeliest), near=near)

    async def score(
        self, tokens: Ids, *, start: int = 1, likeliest: int = 0, chunk: int = 512, near: str = ""
    ) -> Scored:
        """Score tokens[start:] given all tokens before them.

        They are the model's own log-probabilities if the servers say so (`require_raw`).

        At most about `chunk` tokens are scored per request, which bounds the memory on both sides; because of the cache
        this costs little more than one request. Scoring a cached prefix again with more tokens, such as a draft, costs
        only the new tokens.

        Raises:
            ValueError: for a start of 0 or beyond the end, or a chunk below 2.
            UserError: when the server does not report how many tokens it read from its cache.
            RequestFailed, RunError: as `ChatClient.complete` does.
        """
        if not 1 <= start <= len(tokens) or chunk < 2:
            raise ValueError(f"cannot score {len(tokens)} tokens from token {start} in chunks of {chunk}")
        computed = 0
        if start > chunk:  # fill the cache without computing scores that are not needed
            drawn = await self.draw(tokens[: _odd(start - 1)], max_tokens=1, temperature=0.0, near=near)
            computed += drawn.prompt_tokens - drawn.cached_tokens
        rows: list[TokenRow] = []
        following: Likeliest = ()
        ends = [*range(_odd(start + chunk), len(tokens), chunk - chunk % 2), len(tokens)]
        for end in ends:
            first = start + len(rows)
            answer = await self._scored(tokens[:end], likeliest, near, first)
            computed += end - answer.cached
            rows += [answer.rows[position] for position in range(first, end)]
            following = answer.next
        return Scored(tuple(rows), following, computed)

    async def require_raw(self, tokens: Ids) -> None:
        """Check once that the servers report the model's own log-probabilities of a prompt's tokens.

        The same tokens are scored at two temperatures, which must make no difference (see `logprobs_mode`). Nothing is
        checked of a model with `skip_checks: [logprobs]`.

        Args:
            tokens: the beginning of a text like those to score; a few hundred tokens are enough.

        Raises:
            UserError: when they do not, with what to change.
            RequestFailed, RunError: as `ChatClient.complete` does; the next call tries again.
        """
        async with self._checking:
            if self._is_raw or "logprobs" in self._client.spec.skip_checks:
                return
            found = []
            for temperature in TEMPERATURES:
                answer = await self._ask(tokens, _PROBED, "", _PROBED, cache=False, temperature=temperature)
                rows = [answer.rows[position] for position in sorted(answer.rows)]
                found.append([(row.logprob, *(value for _, value in row.likeliest)) for row in rows])
            if (fault := prompt_logprobs_fault(*found)) is not None:
                seen, remedy = fault
                raise UserError(Mistake(f"the server of {self._client.spec.model}: {seen}", hint=remedy))
            self._is_raw = True

    async def _scored(self, tokens: Ids, likeliest: int, near: str, first: int) -> _Answer:
        """Return rows from position `first` on, with the cache if possible."""
        for extra in range(_CACHED_TRIES):
            try:
                answer = await self._ask(tokens, likeliest, near, likeliest + extra, cache=True)
            except RequestFailed as failed:
                if failed.kind != "bad_request":
                    raise
                continue  # another number of entries uses other memory; a truly bad request fails without cache too
            if answer.cached < first:
                return answer
            break
        return await self._ask(tokens, likeliest, near, likeliest, cache=False)

    async def _ask(
        self, tokens: Ids, likeliest: int, near: str, entries: int, *, cache: bool, temperature: float = 0.0
    ) -> _Answer:
        sampling = {
            "max_tokens": 1,
            "temperature": temperature,
            "logprobs": _asked_for(likeliest),
            "skip_reading_prefix_cache": not cache,
            "prompt_logprobs": entries,
        }
        return await self._client.ask(
            _PATH, self._body(tokens, sampling), lambda answer: _answer(answer, tokens, likeliest), near=near
        )

    def _body(self, tokens: Ids, sampling: Mapping[str, Any]) -> dict[str, Any]:
        # Uninitialised rows contain invalid token ids, so the server must not detokenize them.
        return {
            "model": self._client.spec.model,
            "token_ids": list(tokens),
            "sampling_params": {**sampling, "detokenize": False},
        }


def _odd(count: int) -> int:
    """Return `count`, or the next number if it is even.

    The server caches whole blocks of an even number of tokens, so the last of an odd number of tokens is never cached,
    and the next request computes the distribution after it.
    """
    return count | 1


def _asked_for(likeliest: int) -> int:
    # The server counts the sampled token as one of them, so the last of them can be missing.
    return likeliest + 1 if likeliest else 0


def _drawn(answer: Any, likeliest: int) -> Drawn:
    choice, usage = answer["choices"][0], answer["usage"]
    if choice["finish_reason"] not in _COMPLETE:
        raise ValueError(f"the server aborted the request (finish_reason {choice['finish_reason']})")
    rows: list[TokenRow] = []
    for entry in choice["logprobs"]["content"]:
        ranked = sorted((int(top["rank"]), top["token_id"], top["logprob"]) for top in entry["top_logprobs"])
        tops = tuple((token_id, logprob) for _, token_id, logprob in ranked)
        rows.append(TokenRow(entry["token_id"], entry["logprob"], int(entry["rank"]), tops[:likeliest]))
    if [row.token_id for row in rows] != choice["token_ids"]:
        raise ValueError("the log-probabilities do not belong to the returned tokens")
    return Drawn(tuple(rows), choice["finish_reason"], usage["prompt_tokens"], _cached(answer))


def _answer(answer: Any, tokens: Ids, likeliest: int) -> _Answer:
    """Read the rows after the cached part. Positions are counted from the end: a server may omit the cached rows."""
    cached = _cached(answer)
    given = answer["prompt_logprobs"]
    rows = {
        position: _row(given[position - len(tokens)], tokens[position], likeliest)
        for position in range(cached + 1, len(tokens))
    }
    return _Answer(rows, _drawn(answer, likeliest).rows[0].likeliest, cached)


def _row(given: Mapping[str, Any], token_id: int, likeliest: int) -> TokenRow:
    own = given[str(token_id)]
    ranked = sorted(given.items(), key=lambda item: item[1]["rank"])
    tops = tuple((int(other), entry["logprob"]) for other, entry in ranked if entry["rank"] <= likeliest)
    return TokenRow(token_id, own["logprob"], own["rank"], tops[:likeliest])


def _cached(answer: Any) -> int:
    """Return how many tokens of the prompt were read from the cache."""
    details = answer["usage"].get("prompt_tokens_details")
    if details is None:
        raise UserError(
            "the server does not report cached tokens; start `vllm serve` with --enable-prompt-tokens-details"
        )
    return int(details["cached_tokens"])
