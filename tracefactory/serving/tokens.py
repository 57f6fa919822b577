"""Tokens in, tokens out: what scoring and decoding ask of a vLLM server (its endpoint /inference/v1/generate).

Everything is in the model's token ids; no text is made on the way. Log-probabilities are natural logarithms.

Scoring reads the server's prefix cache, which it does not do by itself (`skip_reading_prefix_cache`): 16 new tokens
after 512 cached ones took a ninth of the time of all 528, measured with vLLM 0.32 on a CPU. The trap in it (V1 model
runner; the V2 runner leaves those rows out): what the server says about tokens inside the cached part is left-over
memory. So an answer is read only behind the number of cached tokens that it reports, and where that reaches into what
was asked for, the request is made again without the cache. And where the left-over memory holds no number that JSON
knows (3 of 10 answers, measured with 20 likeliest tokens), the server refuses its own answer, and it is asked again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tracefactory.core.errors import UserError
from tracefactory.core.model import RequestFailed
from tracefactory.serving.client import ChatClient

_PATH = "/inference/v1/generate"
_CACHED_TRIES = 3
_WHOLE = frozenset({"stop", "length"})  # a server that ends gives up what it was at, and answers so far as it came

Ids = Sequence[int]
Likeliest = tuple[tuple[int, float], ...]
"""(token id, log-probability), the likeliest first."""


@dataclass(frozen=True)
class TokenRow:
    """One token in its place: its log-probability and rank (1: the likeliest) there, and the likeliest tokens."""

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
    """What the model says about given tokens: a row for each, and the likeliest tokens to follow the last.

    `computed_tokens` counts the tokens that the servers had to compute for it: what was not in their cache.
    """

    rows: tuple[TokenRow, ...]
    next: Likeliest
    computed_tokens: int


@dataclass(frozen=True)
class _Answer:
    """One answer to a scoring request: rows of the last tokens of the prompt, as far as they were computed."""

    rows: Mapping[int, TokenRow]  # by position
    next: Likeliest
    cached: int


class TokenClient:
    """Draws and scores tokens through the one client of a vLLM model.

    `client` is owned by the caller. `near` says which requests belong together: those of one trace go to one server, in
    whose cache their common beginning is.
    """

    def __init__(self, client: ChatClient) -> None:
        self._client = client

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
        """Return up to `max_tokens` tokens sampled to follow `prompt`, each with the `likeliest` tokens of its place.

        `extra` joins the sampling parameters, under vLLM's names.

        Whether the log-probabilities are the model's own or those left after temperature and top-p is the server's
        `logprobs_mode` (`raw_logprobs` or `processed_logprobs`, an engine argument).

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
        """Return what the model says about tokens[start:] given all before them, at temperature 1, whatever the mode.

        At most about `chunk` tokens are scored per request, so that the memory for it stays bounded on both sides; the
        cache makes that cost little more than one request. Scoring a beginning again with more tokens behind it (a
        draft, say) costs only the new tokens while the server still has it in its cache.

        Raises:
            ValueError: for a start that has nothing before it, or a chunk below 2.
            UserError: when the server does not report what it read from its cache.
            RequestFailed, RunError: as `ChatClient.complete` does.
        """
        if not 1 <= start <= len(tokens) or chunk < 2:
            raise ValueError(f"cannot score from token {start} of {len(tokens)} in chunks of {chunk}")
        computed = 0
        if start > chunk:  # computed without scores, which would be thrown away
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

    async def _scored(self, tokens: Ids, likeliest: int, near: str, first: int) -> _Answer:
        """Return rows from position `first` on, with the help of the cache if that works out."""
        for wider in range(_CACHED_TRIES):
            try:
                answer = await self._ask(tokens, likeliest, near, likeliest + wider, cache=True)
            except RequestFailed as failed:
                if failed.kind != "bad_request":
                    raise
                continue  # one entry more per row lies elsewhere in memory; what is truly bad fails without cache too
            if answer.cached < first:
                return answer
            break
        return await self._ask(tokens, likeliest, near, likeliest, cache=False)

    async def _ask(self, tokens: Ids, likeliest: int, near: str, entries: int, *, cache: bool) -> _Answer:
        sampling = {
            "max_tokens": 1,
            "temperature": 0.0,
            "logprobs": _asked_for(likeliest),
            "skip_reading_prefix_cache": not cache,
            "prompt_logprobs": entries,
        }
        return await self._client.ask(
            _PATH, self._body(tokens, sampling), lambda answer: _answer(answer, tokens, likeliest), near=near
        )

    def _body(self, tokens: Ids, sampling: Mapping[str, Any]) -> dict[str, Any]:
        # Left-over rows hold ids that no tokenizer knows, so the server must not try to name them.
        return {
            "model": self._client.spec.model,
            "token_ids": list(tokens),
            "sampling_params": {**sampling, "detokenize": False},
        }


def _odd(count: int) -> int:
    """Return an odd number just above or at `count`.

    The server caches whole blocks of an even number of tokens, so an odd end is never in the cache itself, and what the
    model says about the next token is computed by the next request.
    """
    return count | 1


def _asked_for(likeliest: int) -> int:
    # The server counts the sampled token as one of them, so that the last of them can be missing.
    return likeliest + 1 if likeliest else 0


def _drawn(answer: Any, likeliest: int) -> Drawn:
    choice, usage = answer["choices"][0], answer["usage"]
    if choice["finish_reason"] not in _WHOLE:
        raise ValueError(f"the server gave up (finish_reason {choice['finish_reason']})")
    rows: list[TokenRow] = []
    for one in choice["logprobs"]["content"]:
        ranked = sorted((int(top["rank"]), top["token_id"], top["logprob"]) for top in one["top_logprobs"])
        tops = tuple((token_id, logprob) for _, token_id, logprob in ranked)
        rows.append(TokenRow(one["token_id"], one["logprob"], int(one["rank"]), tops[:likeliest]))
    if [row.token_id for row in rows] != choice["token_ids"]:
        raise ValueError("the log-probabilities are of other tokens")
    return Drawn(tuple(rows), choice["finish_reason"], usage["prompt_tokens"], _cached(answer))


def _answer(answer: Any, tokens: Ids, likeliest: int) -> _Answer:
    """Read the rows behind the cached part. A server may leave the rows of the cached part out: count from the end."""
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
        raise UserError("the server does not say how much it read from its cache: --enable-prompt-tokens-details")
    return int(details["cached_tokens"])
